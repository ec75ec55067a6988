"""The life of six steps in other engines. Each module is a program of the environment that `bench/peers.txt` describes."""
