//! Each model, as a test.

#[test]
fn turns() {
    kvist_loom::models::turns();
}

#[test]
fn retired() {
    kvist_loom::models::retired();
}

#[test]
fn kept() {
    kvist_loom::models::kept();
}

#[test]
fn given_up() {
    kvist_loom::models::given_up();
}

#[test]
fn awaited() {
    kvist_loom::models::awaited();
}

#[test]
fn budget() {
    kvist_loom::models::budget();
}

#[test]
fn disk_budget() {
    kvist_loom::models::disk_budget();
}

#[test]
fn leases() {
    kvist_loom::models::leases();
}

#[test]
fn published() {
    kvist_loom::models::published();
}

#[test]
fn landing() {
    kvist_loom::models::landing();
}

#[test]
fn woken() {
    kvist_loom::models::woken();
}
