"""Ranks of both directions: ours beside argsort, faiss and torchmetrics.

Shapes: N images, M = 5 N captions, D width.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.harness import Contender, compare, peak_memory, row
from benchmarks.places import peer

SIZES = {"1k x 5k": (1_000, 512), "5k x 25k": (5_000, 512)}
LARGEST = ("100k x 500k", 100_000, 64)  # D 64: at 512 it is 10^14 floating-point operations
HALF_WORK = "finds recall@10 alone, no ranks"


def embeddings(images: int, width: int, device: str = "cpu"):
    """`image_ND`, `text_MD` at unit length, of middling quality, and the image of each caption."""
    import torch

    generator = torch.Generator().manual_seed(0)
    image_of_text_M = torch.arange(images).repeat_interleave(5)
    image_ND = torch.randn(images, width, generator=generator)
    text_MD = torch.randn(5 * images, width, generator=generator).add_(image_ND[image_of_text_M], alpha=0.25)
    unit = torch.nn.functional.normalize
    return unit(image_ND, dim=1).to(device), unit(text_MD, dim=1).to(device), image_of_text_M.numpy()


def ours(images: int, width: int, device: str = "cpu") -> Callable[[], None]:
    """`mmlib.metrics.retrieval_ranks`."""
    from mmlib.metrics import retrieval_ranks

    given = embeddings(images, width, device)
    return _kept(lambda: _ranks(retrieval_ranks(*given)))


def argsort_whole(images: int, width: int, device: str = "cpu") -> Callable[[], None]:
    """The whole matrix, argsort of it and of its transpose: open_clip's `get_clip_metrics`.

    Theirs takes one caption for each image; here the best of the image's captions counts.
    """
    import torch

    image_ND, text_MD, image_of_text_M = embeddings(images, width, device)
    image_of_text_M = torch.from_numpy(image_of_text_M)

    def work():
        sim_NM = (image_ND @ text_MD.T).cpu()
        order_NM = torch.argsort(sim_NM, descending=True)
        hit_NM = image_of_text_M[order_NM] == torch.arange(images)[:, None]
        i2t = hit_NM.float().argmax(1) + 1
        del order_NM, hit_NM
        order_MN = torch.argsort(sim_NM.T, descending=True)
        t2i = torch.where(order_MN == image_of_text_M[:, None])[1] + 1
        return i2t.numpy(), t2i.numpy()

    return _kept(work)


def argsort_rows(images: int, width: int, device: str = "cpu") -> Callable[[], None]:
    """The whole matrix, then numpy's argsort of one row at a time: `itm_eval` of ALBEF, BLIP and LAVIS."""
    image_ND, text_MD, image_of_text_M = embeddings(images, width, device)
    texts_of_image = [np.flatnonzero(image_of_text_M == i) for i in range(images)]

    def work():
        sim_NM = (image_ND @ text_MD.T).cpu()
        i2t, t2i = np.zeros(images, np.int64), np.zeros(5 * images, np.int64)
        for index, score in enumerate(sim_NM.numpy()):
            order = np.argsort(score)[::-1]
            i2t[index] = min(np.where(order == text)[0][0] for text in texts_of_image[index]) + 1
        for index, score in enumerate(sim_NM.T.contiguous().numpy()):
            order = np.argsort(score)[::-1]
            t2i[index] = np.where(order == image_of_text_M[index])[0][0] + 1
        return i2t, t2i

    return _kept(work)


def faiss_flat(images: int, width: int, k: int | None = 10) -> Callable[[], None]:
    """faiss `IndexFlatIP`; `k` None asks for the whole order, which alone gives ranks (0: not found)."""
    import torch

    faiss = peer("faiss")

    faiss.omp_set_num_threads(torch.get_num_threads())
    image_ND, text_MD, image_of_text_M = embeddings(images, width)
    image_ND, text_MD = image_ND.numpy(), text_MD.numpy()

    def order(gallery, query):
        index = faiss.IndexFlatIP(width)
        index.add(gallery)
        return index.search(query, k or len(gallery))[1]

    def work():
        hit_Nk = image_of_text_M[order(text_MD, image_ND)] == np.arange(images)[:, None]
        hit_Mk = order(image_ND, text_MD) == image_of_text_M[:, None]
        return tuple(np.where(hit.any(1), hit.argmax(1) + 1, 0) for hit in (hit_Nk, hit_Mk))

    return _kept(work)


def torchmetrics_hit_rate(images: int, width: int, k: int = 10) -> Callable[[], None]:
    """torchmetrics `RetrievalHitRate` over all scores, both directions."""
    import torch

    retrieval = peer("torchmetrics.retrieval")
    image_ND, text_MD, image_of_text_M = embeddings(images, width)
    positive_NM = torch.arange(images)[:, None] == torch.from_numpy(image_of_text_M)

    def hit_rate(sim, positive):
        rows = torch.arange(len(sim))[:, None].expand_as(sim)
        metric = retrieval.RetrievalHitRate(top_k=k)
        return float(metric(sim.flatten(), positive.flatten(), indexes=rows.flatten()))

    def work():
        sim_NM = image_ND @ text_MD.T
        return hit_rate(sim_NM, positive_NM), hit_rate(sim_NM.T, positive_NM.T)

    return _kept(work)


def rows(quick: bool, device: str = "cpu") -> list[dict]:
    """1k x 5k against all of them, 5k x 25k against those that finish, 100k x 500k against faiss."""
    found = []
    for size, (images, width) in SIZES.items():
        small = images == 1_000
        given = {"images": images, "width": width}
        on_device = {**given, "device": device}
        peers = [Contender("argsort of the matrix", argsort_whole, on_device)]
        notes = {"argsort row by row": "as BLIP does", "argsort of the matrix": "as open_clip does"}
        if not quick or small:
            peers += [
                Contender("argsort row by row", argsort_rows, on_device),
                Contender("faiss flat, k = 10", faiss_flat, {**given, "k": 10}),
            ]
            notes["faiss flat, k = 10"] = HALF_WORK
        if small:
            peers.append(Contender("faiss flat, whole order", faiss_flat, {**given, "k": None}))
        if small and not quick:
            peers.append(Contender("torchmetrics RetrievalHitRate", torchmetrics_hit_rate, given))
            notes["torchmetrics RetrievalHitRate"] = HALF_WORK
        found += compare(
            f"ranks, {size}", Contender("retrieval_ranks", ours, on_device), peers,
            work=f"both directions, D {width}, float32", repetitions=5 if small else 3, notes=notes,
        )  # fmt: skip
    return found if quick else [*found, largest(device)]


def largest(device: str) -> dict:
    """100,000 images against 500,000 captions, once each, in a process of its own."""
    size, images, width = LARGEST
    given = {"images": images, "width": width}
    contenders = [
        Contender("retrieval_ranks", ours, {**given, "device": device}),
        Contender("faiss flat, k = 10", faiss_flat, {**given, "k": 10}),
    ]
    mine, faiss = (
        (contender.name, [measured["seconds"]], measured["peak_mib"])
        for contender in contenders
        for measured in [peak_memory(contender)]
    )
    work = f"both directions, D {width}, float32, once; the whole matrix alone would be 186 GiB"
    return row(f"ranks, {size}", work, "s", mine, faiss, note=HALF_WORK)


def _ranks(ranks) -> tuple[np.ndarray, np.ndarray]:
    return ranks.i2t_N, ranks.t2i_M


def _kept(work: Callable) -> Callable[[], None]:
    """`work` with its result kept in `.result`, for tests, and nothing returned."""

    def counted() -> None:
        counted.result = work()

    return counted
