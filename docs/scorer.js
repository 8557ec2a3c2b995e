// The site's search: a page whose title holds the words as they were typed comes before pages that mention them.
const TYPED = (new URLSearchParams(location.search).get("q") ?? "").trim().toLowerCase();
var Scorer = {
  score: ([, title, , , score]) => score + (TYPED && title.toLowerCase().includes(TYPED) ? 50 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
