"""Environments: Meta-World tasks, their renderer, their experts, and many of them in parallel.

Import from the modules: `tasks`, `env_config`, `metaworld_env`, `expert`, `vector`, `gl`. Nothing is imported here, so
that a worker process loads only what it needs.
"""
