package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/types"
)

// A history is the sequence of holders of one lease, or of owners of one key of a group, as it was seen.
type history struct {
	types.NamespacedName
	Group, Key string
	Spans      []span
}

// A span is a time without changes of the lease.
type span struct {
	Status, Holder  string
	Transitions     int32
	DurationSeconds int32 // of the lease; 0 if unknown
	From, To        time.Time
	Reason          string    // why it began
	Since           time.Time // of a member of a group: when its term began, by its own clock
}

func (s span) lasted() time.Duration { return s.To.Sub(s.From) }

// leaderless reports whether nobody led. A holder that does not renew the lease does not lead.
func (s span) leaderless() bool { return s.Status != held && s.Status != moving }

func (s span) duration() time.Duration { return time.Duration(s.DurationSeconds) * time.Second }

// keyReason returns why the span of a key began.
func keyReason(before *span, c change) string {
	switch {
	case before == nil:
		return "first seen"
	case c.Cause != "":
		return c.Cause
	case c.Status == held:
		return "given"
	}
	return c.Status
}

// reason returns why s began after the span before; nil if there is none.
func reason(before *span, s span) string {
	if before == nil {
		return "first seen"
	}
	sameTerm := before.Holder == s.Holder && before.Transitions == s.Transitions
	switch s.Status {
	case held:
		switch {
		case sameTerm && before.Status == expired:
			return "renewed again"
		case sameTerm && before.Status == held:
			return fmt.Sprintf("duration changed from %v to %v", before.duration(), s.duration())
		case before.Status == expired:
			return "taken over after the expiry"
		case before.Status == held && before.Holder != s.Holder:
			return "taken over while it was held"
		case before.Status == missing:
			return "created"
		}
		return "acquired"
	case free:
		if before.Status == missing {
			return "created"
		}
		return "released"
	case expired:
		if d := s.duration(); d > 0 {
			return fmt.Sprintf("not renewed for %v", d)
		}
		return "not renewed"
	case missing:
		return "deleted"
	}
	return ""
}

// histories returns the histories of the leases and keys in changes until end, ordered by namespace and name.
func histories(changes []change, end time.Time) []history {
	type object struct {
		types.NamespacedName
		key string
	}
	byObject := map[object]*history{}
	var all []*history
	finish := func(h *history, at time.Time) {
		if n := len(h.Spans); n > 0 {
			h.Spans[n-1].To = at
		}
	}
	for _, c := range changes {
		if c.Status == ended {
			end = c.Time
			continue
		}
		of := object{types.NamespacedName{Namespace: c.Namespace, Name: c.Name}, c.Key}
		h := byObject[of]
		if h == nil {
			h = &history{NamespacedName: of.NamespacedName, Group: c.Group, Key: c.Key}
			byObject[of] = h
			all = append(all, h)
		}
		finish(h, c.Time)
		next := span{
			Status: c.Status, Holder: c.Holder, Transitions: c.Transitions, DurationSeconds: c.DurationSeconds,
			From: c.Time,
		}
		var before *span
		if n := len(h.Spans); n > 0 {
			before = &h.Spans[n-1]
		}
		if c.Since != nil {
			next.Since = *c.Since
		}
		if next.Reason = reason(before, next); c.Key != "" {
			next.Reason = keyReason(before, c)
		}
		h.Spans = append(h.Spans, next)
	}
	slices.SortFunc(all, func(a, b *history) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	var done []history
	for _, h := range all {
		finish(h, end)
		done = append(done, *h)
	}
	return done
}

// uuidSuffix is what this library and client-go append to the name of a pod or host, fresh for each campaign or
// process.
var uuidSuffix = regexp.MustCompile(`_[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// candidate returns the pod or host of a holder, which keeps its lane when its process restarts.
func candidate(holder string) string {
	if name := uuidSuffix.ReplaceAllString(holder, ""); name != "" {
		return name
	}
	return holder
}

// candidates returns those that held the lease, in the order of their first terms.
func (h history) candidates() []string {
	var names []string
	for _, s := range h.Spans {
		if name := candidate(s.Holder); s.Holder != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// of reports whether the lane of a candidate shows s; "" is that of nobody, which shows the time without a leader.
func (s span) of(name string) bool {
	if name == "" {
		return s.leaderless()
	}
	return s.Holder != "" && candidate(s.Holder) == name
}

// led returns how long a candidate led; "" is nobody.
func (h history) led(name string) (total time.Duration) {
	for _, s := range h.Spans {
		if s.of(name) && (name == "" || !s.leaderless()) {
			total += s.lasted()
		}
	}
	return total
}

// spent returns how long the lease had a status.
func (h history) spent(status string) (total time.Duration) {
	for _, s := range h.Spans {
		if s.Status == status {
			total += s.lasted()
		}
	}
	return total
}

func (h history) terms() (n int) {
	for _, s := range h.Spans {
		if s.Status == held && s.Reason != "renewed again" && !strings.HasPrefix(s.Reason, "duration changed") {
			n++
		}
	}
	return n
}

// A handover is the time from the end of a term to the next one.
type handover struct {
	after string // how the term ended: released, expired, deleted or taken over
	took  time.Duration
}

// endings maps the status after a term to how the term ended.
var endings = map[string]string{free: "released", expired: "expired", missing: "deleted"}

func (h history) handovers() []handover {
	var all []handover
	var open *handover
	led := false
	for _, s := range h.Spans {
		switch {
		case s.Status == held:
			switch {
			case open != nil && s.Reason != "renewed again":
				all = append(all, *open)
			case led && strings.HasPrefix(s.Reason, "taken over"):
				all = append(all, handover{after: "taken over"})
			}
			open, led = nil, true
		case open != nil:
			open.took += s.lasted()
		case led:
			open = &handover{after: endings[s.Status], took: s.lasted()}
		}
	}
	return all
}

// facts returns the figures beside the bars, a sentence each.
func (h history) facts() []string {
	terms := "1 term"
	if n := h.terms(); n != 1 {
		terms = fmt.Sprint(n, " terms")
	}
	first := []string{terms}
	for _, s := range slices.Backward(h.Spans) {
		if s.DurationSeconds > 0 {
			first = append([]string{"duration " + s.duration().String()}, first...)
			break
		}
	}
	for _, status := range []string{free, expired, missing} {
		if d := h.spent(status); d > 0 {
			first = append(first, status+" for "+roundly(d))
		}
	}
	facts := []string{strings.Join(first, ", ")}
	var handovers []string
	all := h.handovers()
	for _, after := range []string{"released", "expired", "deleted", "taken over"} {
		var took []time.Duration
		for _, o := range all {
			if o.after == after {
				took = append(took, o.took)
			}
		}
		if len(took) == 0 {
			continue
		}
		slices.Sort(took)
		text := fmt.Sprintf("%d %s", len(took), after)
		if after != "taken over" {
			text += ", in " + roundly(took[len(took)/2])
			if len(took) > 1 {
				text += fmt.Sprintf(" (median; %s at most)", roundly(took[len(took)-1]))
			}
		}
		handovers = append(handovers, text)
	}
	if len(handovers) > 0 {
		facts = append(facts, "hand-overs: "+strings.Join(handovers, "; "))
	}
	return facts
}

// palette has the colours of candidates, by their order, with the nearest ones of a terminal.
var palette = []struct{ html, terminal string }{
	{"#4269d0", "\x1b[38;5;68m"}, {"#efb118", "\x1b[38;5;214m"}, {"#3ca951", "\x1b[38;5;71m"},
	{"#ff725c", "\x1b[38;5;209m"}, {"#a463f2", "\x1b[38;5;135m"}, {"#38b2c5", "\x1b[38;5;73m"},
	{"#ff8ab7", "\x1b[38;5;211m"}, {"#9c6b4e", "\x1b[38;5;137m"},
}

// longestTimeline is the time that a terminal shows; older changes move out of it.
const longestTimeline = 10 * time.Minute

// timeline draws who held which lease from began until now, at most the last ten minutes, in width columns.
func timeline(changes []change, began, now time.Time, width int, colour bool) string {
	if now.Sub(began) > longestTimeline {
		began = now.Add(-longestTimeline)
	}
	leases, groups := groupHistories(histories(changes, now))
	if len(leases)+len(groups) == 0 {
		return "No leases found so far.\n"
	}
	f := figure{began: began, now: now, colour: colour}
	most := min(28, max(8, width-24)) // columns of a name
	names := []string{nobody}
	for _, h := range leases {
		names = append(names, h.candidates()...)
	}
	for _, g := range groups {
		names = append(names, g.owners()...)
	}
	for _, name := range names {
		f.columns = max(f.columns, min(most, utf8.RuneCountInString(name)))
	}
	f.bar = max(10, width-f.columns-len("   100% "))
	for _, h := range leases {
		f.title(h.String(), h.facts())
		for i, name := range h.candidates() {
			f.lane(i, name, h.bar(name, began, now, f.bar), percent(h.led(name), h))
		}
		if gap := h.led(""); gap > 0 {
			f.lane(-1, nobody, h.bar("", began, now, f.bar), percent(gap, h))
		}
	}
	for _, g := range groups {
		f.group(g)
	}
	past := "-" + now.Sub(began).Round(time.Second).String()
	fmt.Fprintf(&f.text, " %*s %s%*s\n", f.columns, "", past, f.bar-len(past), "now")
	return f.text.String()
}

// A figure is a timeline that is drawn.
type figure struct {
	text       strings.Builder
	began, now time.Time
	columns    int // of a name
	bar        int // columns of a bar
	colour     bool
}

func (f *figure) title(name string, facts []string) {
	fmt.Fprintf(&f.text, "%s\n", name)
	for _, fact := range facts {
		fmt.Fprintf(&f.text, " %s\n", cut(fact, f.columns+f.bar+6))
	}
}

// lane draws a bar between a name and a figure, in the colour of a candidate by its number; a negative one has none.
func (f *figure) lane(number int, name, bar, figure string) {
	paint, plain := "", ""
	if f.colour && number >= 0 {
		paint, plain = palette[number%len(palette)].terminal, "\x1b[0m"
	}
	fmt.Fprintf(&f.text, " %-*s %s%s%s %4s\n", f.columns, ending(name, f.columns), paint, bar, plain, figure)
}

// group draws how many keys each member had.
func (f *figure) group(g groupHistory) {
	f.title(g.String()+", a group", g.facts())
	owners, highest := append(g.owners(), ""), 1
	levels := map[string][]level{}
	for _, name := range owners {
		levels[name] = g.levels(name)
		highest = max(highest, most(levels[name], f.began, f.now))
	}
	for i, name := range owners {
		bar := heights(levels[name], f.began, f.now, f.bar, highest)
		switch {
		case name != "":
			f.lane(i, name, bar, strconv.Itoa(at(levels[name], f.now)))
		case strings.TrimSpace(bar) != "":
			f.lane(-1, nobody, bar, strconv.Itoa(at(levels[name], f.now)))
		}
	}
	var ages []string
	for _, name := range g.owners() {
		if since := g.since(name); !since.IsZero() {
			ages = append(ages, fmt.Sprintf("%s for %s", printable(name), roundly(max(0, f.now.Sub(since)))))
		}
	}
	if ages != nil {
		fmt.Fprintf(&f.text, " %s\n", cut("members: "+strings.Join(ages, ", "), f.columns+f.bar+6))
	}
}

// heights draws levels as blocks, of which the highest is full.
func heights(levels []level, from, to time.Time, columns, highest int) string {
	blocks := []rune(" ▁▂▃▄▅▆▇█")
	cells := make([]rune, columns)
	for i := range cells {
		edge := func(i int) time.Time { return from.Add(to.Sub(from) * time.Duration(i) / time.Duration(columns)) }
		keys := most(levels, edge(i), edge(i+1))
		cells[i] = blocks[(keys*(len(blocks)-1)+highest-1)/highest]
	}
	return string(cells)
}

const nobody = "(nobody)"

// bar draws the lane of a candidate: a full block for the time it led, a light one for the time
// after its lease had expired. The lane of nobody has dots.
func (h history) bar(name string, from, to time.Time, columns int) string {
	cells := []rune(strings.Repeat(" ", columns))
	total := to.Sub(from)
	for _, s := range h.Spans {
		if !s.of(name) {
			continue
		}
		cell := '█'
		switch {
		case name == "":
			cell = '·'
		case s.leaderless():
			cell = '░'
		}
		first, last := 0, columns
		if total > 0 {
			first = int(s.From.Sub(from) * time.Duration(columns) / total)
			last = int(s.To.Sub(from) * time.Duration(columns) / total)
		}
		for i := max(0, first); i < min(columns, max(last, first+1)); i++ {
			cells[i] = cell
		}
	}
	return string(cells)
}

func percent(part time.Duration, h history) string {
	whole := h.Spans[len(h.Spans)-1].To.Sub(h.Spans[0].From)
	if whole <= 0 {
		return ""
	}
	return fmt.Sprintf("%.0f%%", 100*part.Seconds()/whole.Seconds())
}

// ending returns s for a terminal in at most n columns. It leaves out the beginning of a longer one: the names of pods
// differ in their ends.
func ending(s string, n int) string {
	runes := []rune(printable(s))
	if len(runes) <= n {
		return string(runes)
	}
	return "…" + string(runes[len(runes)-(n-1):])
}

// cut returns a sentence in at most n columns.
func cut(s string, n int) string {
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	return string(runes[:n-1]) + "…"
}
