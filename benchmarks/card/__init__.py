"""What a new card is asked: that it computes what is recorded, and how long everything takes on it. See `__main__`."""
