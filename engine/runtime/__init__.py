"""The engine in real time: a model runner that carries out plans, and the loop that serves."""
