"""`genreward bench --what agent`, and with torchrun its data-parallel form:

python benchmarks/agent/bench_agent.py --size 12M --json benchmarks/results/agent_h100.json
torchrun --nproc-per-node 2 benchmarks/agent/bench_agent.py --size 12M
"""

import sys

from genreward_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "--what", "agent", *sys.argv[1:]]))
