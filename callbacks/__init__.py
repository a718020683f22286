"""Lightning callbacks: what happens beside a training, and with its predictions."""
