"""Pages of long lists: what is searched for, which rows are shown, and the addresses of the pages before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

_Rows = TypeVar("_Rows", bound="Select[*tuple[Any, ...]]")
_Column = ColumnElement[Any] | InstrumentedAttribute[Any]

# As many rows as are read without getting lost; a page of them has some 30 KB.
ROWS = 50
# Nobody turns this many pages. It keeps the offset within what databases take.
MAX_PAGE = 100_000


@dataclass(frozen=True)
class Paging:
    """A page of a list. ``total`` are the rows of the whole list, with its filter."""

    path: str
    filters: dict[str, str]
    page: int
    total: int

    @property
    def pages(self) -> int:
        """How many pages there are; an empty list has one."""
        return max(1, -(-self.total // ROWS))

    @property
    def first(self) -> int:
        """The number of the first row that is shown, counted from one."""
        return min(self.total, (self.page - 1) * ROWS + 1)

    @property
    def last(self) -> int:
        """The number of the last row that is shown."""
        return min(self.total, self.page * ROWS)

    @property
    def before(self) -> str:
        """The address of the page before, or an empty text."""
        return self._url(self.page - 1) if self.page > 1 else ""

    @property
    def after(self) -> str:
        """The address of the page after, or an empty text."""
        return self._url(self.page + 1) if self.page < self.pages else ""

    @property
    def is_filtered(self) -> bool:
        """True if rows may be missing because of a filter."""
        return any(self.filters.values())

    def _url(self, page: int) -> str:
        given = {name: value for name, value in self.filters.items() if value}
        return f"{self.path}?{urlencode({**given, 'page': page})}"


def page_in(text: str) -> int:
    """The page that an address asks for; the first one if it asks for nonsense."""
    return min(int(text), MAX_PAGE) if text.isascii() and text.isdigit() and 0 < len(text) <= 9 and int(text) else 1


def containing(rows: _Rows, text: str, *columns: _Column) -> _Rows:
    """Only the rows of which a column contains the text, in upper or lower case; all of them for an empty text."""
    return rows.where(or_(*(column.icontains(text, autoescape=True) for column in columns))) if text else rows


async def count_of(session: AsyncSession, rows: Select[*tuple[Any, ...]]) -> int:
    """How many rows there are on all pages."""
    return await session.scalar(select(func.count()).select_from(rows.subquery())) or 0


def on_page(rows: _Rows, page: int) -> _Rows:
    """The rows of one page. They must have an order."""
    return rows.offset((page - 1) * ROWS).limit(ROWS)
