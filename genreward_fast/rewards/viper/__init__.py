"""VIPER (arXiv 2305.14343): how likely an autoregressive model of expert frames finds what the agent sees."""
