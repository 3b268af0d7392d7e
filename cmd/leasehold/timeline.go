package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/types"
)

// A history is who held one lease, by what was seen of it.
type history struct {
	types.NamespacedName
	Spans []span
}

// A span is a time in which nothing about the lease changed.
type span struct {
	Status, Holder string
	Transitions    int32
	From, To       time.Time
}

func (s span) lasted() time.Duration { return s.To.Sub(s.From) }

// leaderless tells whether nobody led; a holder that does not renew counts as one that does not.
func (s span) leaderless() bool { return s.Status != held }

// histories returns what changes tell about the time until end, by lease, ordered by namespace and name.
func histories(changes []change, end time.Time) []history {
	byLease := map[types.NamespacedName]*history{}
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
		key := types.NamespacedName{Namespace: c.Namespace, Name: c.Name}
		h := byLease[key]
		if h == nil {
			h = &history{NamespacedName: key}
			byLease[key] = h
			all = append(all, h)
		}
		finish(h, c.Time)
		h.Spans = append(h.Spans, span{Status: c.Status, Holder: c.Holder, Transitions: c.Transitions, From: c.Time})
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

// holders returns those who held the lease, in the order in which they did for the first time.
func (h history) holders() []string {
	var names []string
	for _, s := range h.Spans {
		if s.Holder != "" && !slices.Contains(names, s.Holder) {
			names = append(names, s.Holder)
		}
	}
	return names
}

// led returns for how long holder led; "" is nobody.
func (h history) led(holder string) (total time.Duration) {
	for _, s := range h.Spans {
		if holder == "" && s.leaderless() || holder != "" && s.Holder == holder && !s.leaderless() {
			total += s.lasted()
		}
	}
	return total
}

// palette is the colours of holders, by their order; those of the terminal are the nearest.
var palette = []struct{ html, terminal string }{
	{"#4269d0", "\x1b[38;5;68m"}, {"#efb118", "\x1b[38;5;214m"}, {"#3ca951", "\x1b[38;5;71m"}, {"#ff725c", "\x1b[38;5;209m"},
	{"#a463f2", "\x1b[38;5;135m"}, {"#38b2c5", "\x1b[38;5;73m"}, {"#ff8ab7", "\x1b[38;5;211m"}, {"#9c6b4e", "\x1b[38;5;137m"},
}

// longestTimeline is what a terminal shows; older changes move out of it.
const longestTimeline = 10 * time.Minute

// timeline draws who held which lease from began until now, at most the last ten minutes, in width columns.
func timeline(changes []change, began, now time.Time, width int, colour bool) string {
	if now.Sub(began) > longestTimeline {
		began = now.Add(-longestTimeline)
	}
	most := min(28, max(8, width-24)) // columns of a name
	columns := 0
	hs := histories(changes, now)
	for _, h := range hs {
		for _, name := range append(h.holders(), nobody) {
			columns = max(columns, min(most, utf8.RuneCountInString(name)))
		}
	}
	bar := max(10, width-columns-len("   100% "))
	var b strings.Builder
	for _, h := range hs {
		fmt.Fprintf(&b, "%s\n", h.String())
		for i, name := range h.holders() {
			paint, plain := "", ""
			if colour {
				paint, plain = palette[i%len(palette)].terminal, "\x1b[0m"
			}
			fmt.Fprintf(&b, " %-*s %s%s%s %4s\n", columns, short(name, most), paint, h.bar(name, began, now, bar), plain, percent(h.led(name), h))
		}
		if gap := h.led(""); gap > 0 {
			fmt.Fprintf(&b, " %-*s %s %4s\n", columns, nobody, h.bar("", began, now, bar), percent(gap, h))
		}
	}
	if len(hs) == 0 {
		return "No leases found so far.\n"
	}
	past := "-" + now.Sub(began).Round(time.Second).String()
	fmt.Fprintf(&b, " %*s %s%*s\n", columns, "", past, bar-len(past), "now")
	return b.String()
}

const nobody = "(nobody)"

// bar draws when holder held the lease: a full block for the time it led, a light one for a lease that had expired, and a dot
// where nobody led.
func (h history) bar(holder string, from, to time.Time, columns int) string {
	cells := []rune(strings.Repeat(" ", columns))
	total := to.Sub(from)
	for _, s := range h.Spans {
		var cell rune
		switch {
		case holder == "" && s.leaderless():
			cell = '·'
		case holder == "" || s.Holder != holder:
			continue
		case s.leaderless():
			cell = '░'
		default:
			cell = '█'
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

// short returns s for a terminal in at most n columns, without its middle if it is longer.
func short(s string, n int) string {
	s = printable(s)
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	head := (n - 1) / 2
	return string(runes[:head]) + "…" + string(runes[len(runes)-(n-1-head):])
}
