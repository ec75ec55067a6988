"""The console: pages for operators at `/console`, rendered on the server from the same values as the API.

How a page is added:
1. `web/console/<page>.py` has `add(routes, frame)`, which registers its routes; `web/console/router.py` calls it.
2. Each route has its line in `CONSOLE` of `web/scopes.py`. A GET needs `read`; an action is a POST with its own scope.
3. Its template extends `page.html` and its texts are in `texts/<page>.json`: key → [English, Chinese]. In a template
   `t("key", name=value)` is the text, `time(ms)` a time, `can("operate")` whether the key has a scope.
4. It answers with `frame.page(request, "<page>.html", active="<page>", ...)`. A form has `{{ csrf() }}`; the route is called only
   with the right token, and finds the fields in `request.state.form`. It ends in `frame.back(request, path, notice="text.key")`.
5. A link with `active` goes into `NAVIGATION` of `frame.py`. `<section id="x" data-live="change">` is fetched again when the
   session of `data-task` (or any session) changes; rows of the list come by themselves (`live.py`).
6. No inline script, style or event handler: the policy of every page refuses them. Colors and spacing are in `console.css`.
"""
