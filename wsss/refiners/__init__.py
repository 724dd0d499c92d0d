"""The family `refiner`: how make_sem_seg_labels gets from seed maps to pseudo masks."""
