"""What happens while sampling: the papers' tensor mathematics here, the host's inner workings in host/."""
