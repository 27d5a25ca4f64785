"""A model copied, traced or observed, compared with what it becomes, converted."""
