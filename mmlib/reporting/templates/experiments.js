// Filters the experiments and shows the verdict of two runs; without scripts all of them stand there.
for (const part of document.querySelectorAll(".scripted")) part.hidden = false;
const filter = document.getElementById("filter");
if (filter) {
  const rows = [...document.querySelectorAll("#overview tbody tr")];
  const texts = new Map(rows.map((row) => [row.dataset.of, row.innerText.toLowerCase()]));
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    const fits = (of) => words.every((word) => texts.get(of).includes(word));
    for (const part of document.querySelectorAll("[data-of]")) part.hidden = !fits(part.dataset.of);
    document.getElementById("count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  });
}
const verdicts = document.getElementById("verdicts");
if (verdicts) {
  const known = JSON.parse(verdicts.textContent);
  const [first, second] = ["first", "second"].map((id) => document.getElementById(id));
  const show = () => {
    const pair = [Number(first.value), Number(second.value)].sort((a, b) => a - b).join(" ");
    document.getElementById("verdict").textContent = known[pair] ?? "Pick two different runs.";
  };
  second.value = "1";
  for (const select of [first, second]) select.addEventListener("change", show);
  show();
}
