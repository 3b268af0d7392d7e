package main

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/duration"
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
It watches leases until it is interrupted, or for the time given by --for, and writes a page that shows who held them,
when and how long, how long they were free or expired, and how long each hand-over took. Holders are shown by their
pod or host: a restarted process keeps its line. The page needs no other files. With --record it also appends what it
sees to a file, one JSON object a line as of watch -o json; --from renders the page of such a recording, without an
API server.

With --group it shows who owned how many keys of a group, and which, how long keys had no owner, and each move with its
cause. The keys have lanes of their own if there are 200 or fewer.`,
		examples: `
# What happens to the leader during the upgrade?
leasehold report reconciler --for 30m --html upgrade.html

# Where do the keys of a group go?
leasehold report --group tenants --for 30m --html tenants.html

# Keep the recording, and render it later
leasehold report -A --record leases.jsonl
leasehold report --from leases.jsonl --html leases.html`,
		flags: func(flags *pflag.FlagSet) {
			flags.DurationVar(&lasts, "for", 0, "how long to watch (default until interrupted)")
			flags.StringVar(&html, "html", "leases.html", "file to write the page to; - for standard output")
			flags.StringVar(&record, "record", "", "file to append each change to")
			flags.StringVar(&from, "from", "", "render this recording; - for standard input")
			s.flags(flags)
		},
		run: func(t *tool, args []string, _ int) error {
			switch {
			case lasts < 0:
				return usagef("--for %v: want a positive time", lasts)
			case from != "" && (record != "" || lasts != 0 || len(args) > 0 || s.all || s.selector != "" ||
				s.group != ""):
				return usagef("--from renders a recording as it is: it excludes all flags but --html")
			}
			page, err := t.openPage(html)
			if err != nil {
				return err
			}
			defer page.close()
			var changes []change
			if from != "" {
				changes, err = t.readRecording(from)
			} else {
				changes, err = t.record(s, args, record, lasts)
			}
			if err != nil {
				return err
			}
			return page.write(changes)
		},
	}
}

// record returns the changes of the leases until it is interrupted, or after lasts.
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
	fmt.Fprintln(t.logs, "Watching; interrupt to write the page.")
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

// readRecording returns the changes that record wrote.
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
			return nil, fmt.Errorf("%s, line %d: want the time and the status of a lease, as of watch -o json", path, n)
		}
		changes = append(changes, c)
	}
	if len(changes) == 0 && lines.Err() == nil {
		return nil, fmt.Errorf("%s: nothing recorded", path)
	}
	return changes, lines.Err()
}

// A pageFile is the destination of a page. It is opened before the watch begins, so that a mistake in its name is found
// first, and keeps an older page until the new one is complete.
type pageFile struct {
	tool    *tool
	file    *os.File // nil for standard output
	created bool     // it was not there before
	written bool
}

func (t *tool) openPage(path string) (*pageFile, error) {
	p := &pageFile{tool: t}
	if path == "-" {
		return p, nil
	}
	_, err := os.Stat(path)
	p.created = errors.Is(err, fs.ErrNotExist)
	p.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	return p, err
}

func (p *pageFile) write(changes []change) error {
	if p.file == nil {
		return renderPage(p.tool.out, changes)
	}
	var page bytes.Buffer
	if err := renderPage(&page, changes); err != nil {
		return err
	}
	p.file.Truncate(0) // fails for a device, as /dev/stdout
	_, err := p.file.Write(page.Bytes())
	if err := errors.Join(err, p.file.Close()); err != nil {
		return err
	}
	p.written = true
	_, err = fmt.Fprintf(p.tool.out, "%s written\n", p.file.Name())
	return err
}

// close removes the file if it was created and no page was written.
func (p *pageFile) close() {
	if p.file == nil || p.written {
		return
	}
	p.file.Close()
	if p.created {
		os.Remove(p.file.Name())
	}
}

//go:embed report.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"clock": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000") },
	"span":  roundly,
	"name":  candidate,
	"age":   func(since, now time.Time) string { return duration.HumanDuration(max(0, now.Sub(since))) },
	"head":  func(s string) string { head, _ := split(s); return head },
	"tail":  func(s string) string { _, tail := split(s); return tail },
}).Parse(pageText))

// roundly returns d with as many digits as people read.
func roundly(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// split divides a name into a beginning that a narrow page cuts and an end, in which the names of pods differ.
func split(s string) (head, tail string) {
	const end = 14
	runes := []rune(s)
	at := max(0, len(runes)-end)
	return string(runes[:at]), string(runes[at:])
}

// A page is the input of the template.
type page struct {
	From, To time.Time
	Ticks    []tick
	Leases   []leasePage
	Groups   []groupPage
}

type tick struct {
	Left  float64 // percent of the width
	Label string
}

type leasePage struct {
	Name       string
	Facts      []string
	Leaderless time.Duration
	LongestGap time.Duration
	Lanes      []lane
	Spans      []bar
}

// A lane is the line of one candidate, or of nobody.
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

type groupPage struct {
	Name    string
	Facts   []string
	Members []memberLane
	Keys    []lane // of which each bar is an owner's
	Moves   []move
	Colours map[string]string
}

// A memberLane shows how many keys a member owned, or nobody did.
type memberLane struct {
	lane
	Levels []levelBar
	Since  time.Time // zero if it is no member at the end
	Most   int
	Now    int
}

type levelBar struct {
	level
	Left, Width, Top float64 // percent
}

// maxLanes is how many keys have lanes of their own.
const maxLanes = 200

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
	leases, groups := groupHistories(histories(changes, end))
	for _, h := range leases {
		l := leasePage{Name: h.String(), Facts: h.facts(), Leaderless: h.led("")}
		names := append(h.candidates(), "")
		lanes := map[string]*lane{}
		for i, name := range names {
			lanes[name] = &lane{Name: name, Colour: palette[i%len(palette)].html, Share: percent(h.led(name), h)}
		}
		lanes[""].Name, lanes[""].Colour = nobody, ""
		var gap time.Duration
		for _, s := range h.Spans {
			b := bar{span: s, Left: left(s.From), Width: left(s.To) - left(s.From),
				Colour: lanes[candidate(s.Holder)].Colour}
			l.Spans = append(l.Spans, b)
			if s.leaderless() {
				gap += s.lasted()
				nobodys := b
				nobodys.Colour = ""
				lanes[""].Bars = append(lanes[""].Bars, nobodys)
			} else {
				gap = 0
			}
			if s.Holder != "" {
				of := lanes[candidate(s.Holder)]
				of.Bars = append(of.Bars, b)
			}
			l.LongestGap = max(l.LongestGap, gap)
		}
		for _, name := range names {
			if r := lanes[name]; len(r.Bars) > 0 {
				l.Lanes = append(l.Lanes, *r)
			}
		}
		p.Leases = append(p.Leases, l)
	}
	for _, g := range groups {
		p.Groups = append(p.Groups, g.page(end, left))
	}
	return pageTemplate.Execute(w, p)
}

// page returns what the page shows of a group. A time is left percent of the width from the left.
func (g groupHistory) page(end time.Time, left func(time.Time) float64) groupPage {
	p := groupPage{Name: g.String(), Facts: g.facts(), Moves: g.moves(), Colours: map[string]string{}}
	highest := 1
	for i, name := range append(g.owners(), "") {
		m := memberLane{lane: lane{Name: name, Colour: palette[i%len(palette)].html}, Since: g.since(name)}
		levels := g.levels(name)
		for _, l := range levels {
			m.Most = max(m.Most, l.Keys)
			if l.Keys > 0 {
				m.Levels = append(m.Levels, levelBar{level: l, Left: left(l.From), Width: left(l.To) - left(l.From)})
			}
		}
		m.Now = at(levels, end)
		highest = max(highest, m.Most)
		if name == "" {
			if m.Most == 0 {
				continue
			}
			m.Name, m.Colour = nobody, ""
		}
		p.Colours[name] = m.Colour
		p.Members = append(p.Members, m)
	}
	for _, m := range p.Members {
		for i, l := range m.Levels {
			m.Levels[i].Top = 100 * (1 - float64(l.Keys)/float64(highest))
		}
	}
	if len(g.Keys) > maxLanes {
		return p
	}
	for _, h := range g.Keys {
		l := lane{Name: h.Key}
		for _, s := range h.Spans {
			if s.Status == missing {
				continue
			}
			b := bar{span: s, Left: left(s.From), Width: left(s.To) - left(s.From)}
			if !s.leaderless() {
				b.Colour = p.Colours[candidate(s.Holder)]
			}
			l.Bars = append(l.Bars, b)
		}
		p.Keys = append(p.Keys, l)
	}
	return p
}
