"""Around hmm.py: files of models, Baum–Welch, the best paths, the explanation of the exercise, and the trellis."""
