"""The sections of a recipe, one file each; `luthier.recipe.schema` puts them together."""
