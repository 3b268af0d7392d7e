package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"os"
	"time"

	"github.com/spf13/pflag"
)

func reportCommand() *command {
	var s selection
	var record, from, html string
	var lasts time.Duration
	return &command{
		name:  "report",
		args:  "[LEASE...] [FLAGS]",
		short: "Render who held leases as an HTML page",
		long: `
It watches leases until it is interrupted, or for the time given by --for, and writes a page that shows who held them, when
and how long, and when nobody did. The page needs nothing else. With --record it keeps what it sees in a file too, one
JSON object a line as of watch -o json, from which --from renders the page again without asking an API server.`,
		examples: `
# What happens to the leader during the upgrade?
leasehold report reconciler --for 30m --html upgrade.html

# Keep the recording, and render it later
leasehold report -A --record leases.jsonl
leasehold report --from leases.jsonl --html leases.html`,
		flags: func(flags *pflag.FlagSet) {
			flags.DurationVar(&lasts, "for", 0, "how long to watch (default until interrupted)")
			flags.StringVar(&html, "html", "leases.html", "file to write the page to; - for standard output")
			flags.StringVar(&record, "record", "", "file to append the changes to as they are seen")
			flags.StringVar(&from, "from", "", "render this recording; - for standard input")
			s.flags(flags)
		},
		run: func(t *tool, args []string, _ int) error {
			switch {
			case lasts < 0:
				return usagef("--for %v: want a positive time", lasts)
			case from != "" && (record != "" || lasts != 0 || len(args) > 0 || s.all || s.selector != ""):
				return usagef("--from renders a recording as it is: want --html alone with it")
			}
			var changes []change
			var err error
			if from != "" {
				changes, err = t.readRecording(from)
			} else {
				changes, err = t.record(s, args, record, lasts)
			}
			if err != nil {
				return err
			}
			return t.writePage(html, changes)
		},
	}
}

// record returns the changes of the leases until it is interrupted, or lasts is over.
func (t *tool) record(s selection, args []string, path string, lasts time.Duration) ([]change, error) {
	sel, err := s.resolve(t, args)
	if err != nil {
		return nil, err
	}
	out := io.Discard
	if path != "" {
		file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		out = file
	}
	ctx, cancel := during(lasts)
	defer cancel()
	fmt.Fprintln(t.err, "Watching; interrupt to write the page.")
	var changes []change
	var failed error
	add := func(c change) {
		changes = append(changes, c)
		line, _ := json.Marshal(c) // cannot fail
		if _, err := fmt.Fprintf(out, "%s\n", line); err != nil && failed == nil {
			failed = err
			cancel()
		}
	}
	err = sel.observe(ctx, t, func(e event) { add(e.change) })
	add(change{Time: time.Now(), Status: ended})
	return changes, errors.Join(err, failed)
}

// readRecording returns what record wrote.
func (t *tool) readRecording(path string) ([]change, error) {
	in := t.in
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in = file
	}
	var changes []change
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		var c change
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		if c.Time.IsZero() || c.Status == "" {
			return nil, fmt.Errorf("%s, line %d: want the time and the status of a lease, as watch -o json writes them", path, n)
		}
		changes = append(changes, c)
	}
	if len(changes) == 0 && lines.Err() == nil {
		return nil, fmt.Errorf("%s: nothing recorded", path)
	}
	return changes, lines.Err()
}

func (t *tool) writePage(path string, changes []change) error {
	if path == "-" {
		return renderPage(t.out, changes)
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(renderPage(file, changes), file.Close()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(t.out, "%s written\n", path)
	return err
}

//go:embed report.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"clock": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
	"span":  roundly,
}).Parse(pageText))

// roundly returns d as people want to read it.
func roundly(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// A page is what the template shows.
type page struct {
	From, To time.Time
	Ticks    []tick
	Leases   []leasePage
}

type tick struct {
	Left  float64 // percent of the width
	Label string
}

type leasePage struct {
	Name                   string
	Terms                  int
	Leaderless, LongestGap time.Duration
	Lanes                  []lane
	Spans                  []bar
}

// A lane is the line of one holder, or of nobody.
type lane struct {
	Name, Colour string
	Share        string
	Bars         []bar
}

type bar struct {
	span
	Left, Width float64 // percent of the width
	Colour      string
}

func (b bar) Lasted() time.Duration { return b.lasted() }
func (b bar) Leaderless() bool      { return b.leaderless() }

func renderPage(w io.Writer, changes []change) error {
	var end time.Time
	for _, c := range changes {
		if c.Time.After(end) {
			end = c.Time
		}
	}
	p := page{From: changes[0].Time, To: end}
	total := max(end.Sub(p.From), time.Nanosecond)
	left := func(t time.Time) float64 { return 100 * float64(t.Sub(p.From)) / float64(total) }
	const ticks = 6
	for i := range ticks {
		at := p.From.Add(total * time.Duration(i) / (ticks - 1))
		p.Ticks = append(p.Ticks, tick{left(at), at.UTC().Format("15:04:05")})
	}
	for _, h := range histories(changes, end) {
		l := leasePage{Name: h.String(), Leaderless: h.led("")}
		names := append(h.holders(), "")
		rows := map[string]*lane{}
		for i, name := range names {
			r := &lane{Name: name, Colour: palette[i%len(palette)].html, Share: percent(h.led(name), h)}
			if name == "" {
				r.Name, r.Colour = nobody, ""
			}
			rows[name] = r
		}
		var gap time.Duration
		for _, s := range h.Spans {
			b := bar{span: s, Left: left(s.From), Width: left(s.To) - left(s.From), Colour: rows[s.Holder].Colour}
			l.Spans = append(l.Spans, b)
			if s.leaderless() {
				gap += s.lasted()
				nobodys := b
				nobodys.Colour = ""
				rows[""].Bars = append(rows[""].Bars, nobodys)
			} else {
				l.Terms++
				gap = 0
			}
			if s.Holder != "" {
				rows[s.Holder].Bars = append(rows[s.Holder].Bars, b)
			}
			l.LongestGap = max(l.LongestGap, gap)
		}
		for _, name := range names {
			if r := rows[name]; len(r.Bars) > 0 {
				l.Lanes = append(l.Lanes, *r)
			}
		}
		p.Leases = append(p.Leases, l)
	}
	return pageTemplate.Execute(w, p)
}
