"""Operations on arrays that losses and objectives are made of."""
