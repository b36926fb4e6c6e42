"""What faiss and scikit-learn do with the same keys: a small server for `kvist bench cluster`.

Reads one JSON request per line, answers with one JSON object per line, ends with its input. The first line
it writes says which peers it found, `{"peers": [..], "notes": [..]}`.

A request `{"peer", "keys", "labels", "dim", "clusters", "segment", "assignments", "threads", "seconds",
"repeats"}` names a file of f32 keys and one for the labels (u32), and is answered with
`{"median", "best", "spread", "repeats"}` in seconds. Every peer compares each key `assignments` times with the
centroids, and no more:

- `faiss`: `Kmeans(spherical=True)` with one iteration less, then a search for the labels;
- `faiss, segments`: the same for each segment of the keys by itself;
- `sklearn KMeans`: of normalised keys, Lloyd's algorithm, random initial keys, one run, one iteration less
  (it labels at the end);
- `sklearn MiniBatchKMeans`: of normalised keys, batches of 8192, as many passes less one, then labels.

Times include everything from the f32 keys in memory to the labels.
"""

import json
import sys
import time

BATCH = 8192


def say(value):
    print(json.dumps(value), flush=True)


def summary(times):
    times = sorted(times)

    def at(share):
        return times[round((len(times) - 1) * share)]

    median = at(0.5)
    spread = (at(0.75) - at(0.25)) / median if median else 0.0
    return {"median": median, "best": times[0], "spread": spread, "repeats": len(times)}


def measure(step, seconds, repeats):
    """Times `step()` after one unmeasured call; returns the times and what the last one returned."""
    result = step()
    times, began = [], time.perf_counter()
    while not times or not done(len(times), repeats, time.perf_counter() - began, seconds):
        start = time.perf_counter()
        result = step()
        times.append(time.perf_counter() - start)
    return summary(times), result


def done(count, repeats, elapsed, seconds):
    if repeats is not None:
        return count >= repeats
    # What takes seconds a step is as certain after three steps as it needs to be.
    return elapsed >= seconds and (count >= 7 or (elapsed >= 4 * seconds and count >= 3))


def normalised(np, keys):
    norms = np.sqrt(np.einsum("ij,ij->i", keys, keys))[:, None]
    return keys / np.maximum(norms, np.finfo(np.float32).tiny)


def faiss_peer(np, faiss, keys, clusters, assignments):
    # Without the limits it would train on a sample, or complain about small clusters.
    kmeans = faiss.Kmeans(
        keys.shape[1],
        clusters,
        niter=assignments - 1,
        spherical=True,
        seed=1,
        min_points_per_centroid=1,
        max_points_per_centroid=len(keys),
    )
    kmeans.train(keys)
    return kmeans.index.search(keys, 1)[1].ravel()


def faiss_segments(np, faiss, keys, request):
    labels, before = [], 0
    for first in range(0, len(keys), request["segment"]):
        segment = keys[first : first + request["segment"]]
        clusters = max(1, round(request["clusters"] * len(segment) / len(keys)))
        found = faiss_peer(np, faiss, segment, clusters, request["assignments"])
        labels.append(found + before)
        before += clusters
    return np.concatenate(labels)


def sklearn_kmeans(np, cluster, keys, request):
    kmeans = cluster.KMeans(
        request["clusters"],
        init="random",
        n_init=1,
        max_iter=request["assignments"] - 1,
        tol=0,
        algorithm="lloyd",
        random_state=1,
    )
    return kmeans.fit(normalised(np, keys)).labels_


def sklearn_minibatch(np, cluster, keys, request):
    kmeans = cluster.MiniBatchKMeans(
        request["clusters"],
        init="random",
        n_init=1,
        init_size=request["clusters"],
        batch_size=BATCH,
        max_iter=request["assignments"] - 1,
        max_no_improvement=None,
        reassignment_ratio=0,
        random_state=1,
    )
    return kmeans.fit(normalised(np, keys)).labels_


def load():
    """The peers that can be imported, as functions of keys and request, and what is missing."""
    peers, notes = {}, []
    try:
        import numpy as np
    except Exception as problem:  # a broken installation raises more than ImportError
        return peers, None, [f"numpy cannot be imported: {problem}"]
    try:
        import faiss

        def whole(keys, request):
            return faiss_peer(np, faiss, keys, request["clusters"], request["assignments"])

        peers["faiss"] = whole
        peers["faiss, segments"] = lambda keys, request: faiss_segments(np, faiss, keys, request)
        notes.append(f"peers: faiss {faiss.__version__}")
    except Exception as problem:
        notes.append(f"no peer faiss: {problem}")
    try:
        import sklearn
        from sklearn import cluster

        peers["sklearn KMeans"] = lambda keys, request: sklearn_kmeans(np, cluster, keys, request)
        peers["sklearn MiniBatchKMeans"] = lambda keys, request: sklearn_minibatch(
            np, cluster, keys, request
        )
        notes.append(f"peers: scikit-learn {sklearn.__version__}")
    except Exception as problem:
        notes.append(f"no peer scikit-learn: {problem}")
    return peers, np, notes


def limit_threads(threads):
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(threads)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return
    threadpool_limits(limits=threads)


def main():
    import warnings

    warnings.simplefilter("ignore")  # that so few iterations do not converge is the point
    peers, np, notes = load()
    if not peers:
        say({"error": "; ".join(notes)})
        return
    say({"peers": list(peers), "notes": notes})
    for line in sys.stdin:
        try:
            request = json.loads(line)
            limit_threads(request["threads"])
            keys = np.fromfile(request["keys"], dtype=np.float32).reshape(-1, request["dim"])
            peer = peers[request["peer"]]
            times, labels = measure(
                lambda peer=peer, keys=keys, request=request: peer(keys, request),
                request["seconds"],
                request["repeats"],
            )
            labels.astype(np.uint32).tofile(request["labels"])
            say(times)
        except Exception as problem:
            say({"error": f"{type(problem).__name__}: {problem}"})


if __name__ == "__main__":
    main()
