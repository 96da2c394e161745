"""Environments: Meta-World's tasks and their experts, dm_control's with distractions, and many of them in parallel.

Import from the modules: `suites` finds a task of either suite; `tasks`, `env_config`, `metaworld_env` and `expert` are
Meta-World's, `control_tasks`, `control_config` and `control_env` dm_control's; `vector` and `gl` serve both. Nothing is
imported here, so that a worker process loads only what it needs.
"""
