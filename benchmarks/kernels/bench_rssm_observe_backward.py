"""Times the gradients of the scan over observed sequences, as one CUDA graph: 64 steps at size 12M."""

from scanning import measure

if __name__ == "__main__":
    measure("rssm_observe_backward", __doc__ or "", backward=True)
