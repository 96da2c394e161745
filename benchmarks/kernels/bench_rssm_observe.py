"""Times the scan over observed sequences, forward, as one CUDA graph: 64 steps at size 12M."""

from scanning import measure

if __name__ == "__main__":
    measure("rssm_observe", __doc__ or "", backward=False)
