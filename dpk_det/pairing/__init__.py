"""Who learns from whom: teacher and student, their levels, their heads, and how they are joined."""
