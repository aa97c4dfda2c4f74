// What scrolls sideways, tables and the notebook's code, is reached by the keyboard as well.
const wide = ".md-typeset__scrollwrap, .highlight-ipynb, .jp-OutputArea-output pre";

function reach() {
  for (const each of document.querySelectorAll(wide)) each.tabIndex = 0;
}

reach();
new MutationObserver(reach).observe(document.body, { childList: true, subtree: true });
