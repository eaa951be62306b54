// A click on the heading of a table sorts its rows by that column, the largest number first; a second click turns the order.
// What has no number (`-`) stays last.
document.addEventListener("click", (event) => {
  const heading = event.target.closest("article thead th");
  if (!heading) return;
  const body = heading.closest("table").tBodies[0];
  const key = (row) => {
    const text = row.cells[heading.cellIndex].textContent.trim().replace(/^≤\s*/, "");
    return text === "-" || text === "" ? null : /^[+-]?\d/.test(text) ? parseFloat(text) : text;
  };
  const turned = heading.getAttribute("aria-sort") === "descending";
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", turned ? "ascending" : "descending");
  const compare = (one, other) => {
    const [left, right] = [key(one), key(other)];
    if (left === null || right === null) return (left === null) - (right === null);
    const numbers = typeof left === "number" && typeof right === "number";
    const order = numbers ? right - left : String(left).localeCompare(String(right));
    return turned ? -order : order;
  };
  body.append(...[...body.rows].sort(compare));
});
