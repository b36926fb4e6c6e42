"""How well a real model answers when it reads only what a selector picks."""
