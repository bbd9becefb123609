"""Around hmm.py: files of models, Baum–Welch, the explanation of the exercise, and the trellis."""
