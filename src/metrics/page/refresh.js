(() => {
  const gone = () => document.getElementById("gone").classList.add("now");
  setInterval(async () => {
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(8000) });
      if (!answer.ok) return gone();
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.querySelector("main").replaceWith(document.adoptNode(page.querySelector("main")));
      document.title = page.title;
    } catch { gone(); }
  }, 10000);
})();
