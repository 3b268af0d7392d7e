package main

import (
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// A frame is a picture of the timeline in the cells of a terminal. Terminals and SVG show the same frames.
type frame struct {
	width int
	lines [][]cell
}

type cell struct {
	rune
	style
}

// A style names how a cell looks; the palette has its colours.
type style int

const (
	plain style = iota
	bold
	dim
	good
	bad
	ice
	amber
	teal
	violet
	bars   // bars + amber is an amber bar
	labels = bars * 2
)

// bar returns the style of a piece of a bar, label that of the text in it.
func (s style) bar() style   { return bars + s }
func (s style) label() style { return labels + s }

// horizon is the time that the whole show takes on a machine that is not busy.
const horizon = 34 * time.Second

// margin is left of everything.
const margin = 2

// draw returns a frame of exactly this width, whatever it is.
func draw(t *timeline, width int) *frame {
	f := &frame{width: width}
	f.header(t)
	f.line()
	f.chart(t)
	f.line()
	f.line()
	f.text(margin, t.note, plain)
	f.line()
	f.table(t)
	return f
}

// line begins a new line.
func (f *frame) line() {
	f.lines = append(f.lines, slices.Repeat([]cell{{' ', plain}}, f.width))
}

// text writes s into the last line from a column on and returns the column after it. What is beyond the edge is cut.
func (f *frame) text(column int, s string, st style) int {
	line := f.lines[len(f.lines)-1]
	for _, r := range s {
		if column >= 0 && column < len(line) {
			line[column] = cell{r, st}
		}
		column++
	}
	return column
}

func (f *frame) header(t *timeline) {
	f.line()
	clock := fmt.Sprintf("%.1f s", (t.now - t.start).Seconds())
	next := f.text(margin, "leasehold", bold)
	next = f.text(next+2, "three processes, one Lease, one leader at a time", dim)
	if column := f.width - margin - len(clock); column > next {
		f.text(column, clock, dim)
	}
}

// A scale says which column shows which time.
type scale struct {
	start   time.Duration
	column  int // the first
	columns int
	whole   time.Duration // from the first to beyond the last
}

// at returns the time that a column shows.
func (s scale) at(column int) stretch {
	edge := func(i int) time.Duration { return s.start + s.whole*time.Duration(i)/time.Duration(s.columns) }
	return stretch{edge(column - s.column), edge(column - s.column + 1)}
}

// of returns the column that shows a time.
func (s scale) of(t time.Duration) int {
	return s.column + int((t-s.start)*time.Duration(s.columns)/s.whole)
}

// Left of the chart are names, and process IDs if there is room.
const narrowLabels, wideLabels = margin + 11, margin + 15

// chart draws the events, the API server, the candidates and the time.
func (f *frame) chart(t *timeline) {
	s := scale{start: t.start, column: wideLabels, whole: max(horizon, t.now-t.start)}
	if f.width < 70 {
		s.column = narrowLabels
	}
	s.columns = max(f.width-s.column-margin, 1)

	f.line()
	for i, m := range t.marks {
		room := f.width - s.of(m.at)
		if i+1 < len(t.marks) {
			room = s.of(t.marks[i+1].at) - s.of(m.at)
		}
		label := m.key
		for _, l := range []string{"▾" + m.key, "▾" + m.label} {
			if utf8.RuneCountInString(l) < room {
				label = l
			}
		}
		f.text(s.of(m.at), label, bold)
	}

	f.line()
	f.text(margin, "API server", plain)
	for c := range s.columns {
		c += s.column
		switch at := s.at(c); {
		case at.from > t.now:
		case slices.ContainsFunc(t.away, at.overlaps):
			f.text(c, "╳", bad)
		default:
			f.text(c, "━", dim)
		}
	}
	for _, r := range t.rows {
		f.row(t, r, s)
	}

	f.line()
	every := 5 * time.Second
	for s.whole/every*4 > time.Duration(s.columns) {
		every *= 2
	}
	for at := time.Duration(0); at < s.whole; at += every {
		f.text(s.of(t.start+at), fmt.Sprintf("%ds", int(at.Seconds())), dim)
	}
	f.line()
	f.text(s.column, "█ leads, with its fencing token   ─ stands by   ┄ dead, its lease expires", dim)
}

// row draws what the processes of a candidate do: wait, lead, or nothing.
func (f *frame) row(t *timeline, r *row, s scale) {
	f.line()
	next := f.text(margin, r.name, r.style)
	if r.process != nil && s.column > narrowLabels {
		f.text(next+1, fmt.Sprint(r.process.pid()), dim)
	}
	for c := range s.columns {
		c += s.column
		switch at := s.at(c); {
		case at.from > t.now:
		case slices.ContainsFunc(r.frozen, at.overlaps):
			f.text(c, "░", ice)
		case slices.ContainsFunc(r.lives, at.overlaps):
			f.text(c, "─", dim)
		case slices.ContainsFunc(r.outlived, at.overlaps):
			f.text(c, "┄", r.style)
		}
	}
	for _, session := range r.sessions {
		from, to := s.of(session.worked.from), s.of(session.worked.to)
		for c := from; c <= to; c++ {
			f.text(c, " ", r.style.bar())
		}
		f.text(from, "▏", r.style.bar()) // separates it from a bar before
		if label := fmt.Sprint(session.token); len(label)+2 <= to-from+1 {
			f.text(from+1, label, r.style.label())
		}
	}
	for _, stretch := range r.frozen {
		if label := " frozen "; stretch.to != still && len(label)+2 <= s.of(stretch.to)-s.of(stretch.from) {
			f.text(s.of(stretch.from)+2, label, ice)
		}
	}
	for _, at := range r.killed {
		f.text(s.of(at), "✕", bad)
	}
}

// A column is one of the table's; each step has a text in it.
type column struct {
	name  string
	width int
	text  func(*step) string
}

var table = []column{
	{"EVENT", 27, func(s *step) string { return s.key + "  " + s.event }},
	{"WHO TOOK OVER", 18, func(s *step) string { return s.who }},
	{"AFTER", 10, func(s *step) string { return s.after }},
	{"FENCING TOKEN", 15, func(s *step) string { return s.tokens }},
	{"", 31, func(s *step) string { return s.remark }},
}

// table draws the outcomes of the events, in as many columns as there is room for, and the verdict.
func (f *frame) table(t *timeline) {
	columns, room := slices.Clone(table), f.width-2*margin-2
	for i, c := range columns {
		if room -= c.width; room < 0 && i >= 3 {
			columns = columns[:i]
			break
		} else if room < 0 {
			columns[0].width = max(columns[0].width+room, 8)
			room = 0
		}
	}
	row := func(text func(column) string, st style) {
		f.line()
		next := margin + 2
		for _, c := range columns {
			if c.name == "" {
				st = dim
			}
			f.text(next, cut(text(c), c.width-1), st)
			next += c.width
		}
	}
	row(func(c column) string { return c.name }, dim)
	for _, s := range t.steps {
		row(func(c column) string { return c.text(s) }, s.state.style())
		f.sign(s.state)
	}
	f.line()
	f.line()
	next := f.text(margin+2, t.verdict.event, t.verdict.state.style())
	f.text(next+2, t.verdict.remark, dim)
	f.sign(t.verdict.state)
}

func (f *frame) sign(s state) {
	f.text(margin, [...]string{"·", "▸", "✓", "✗"}[s], [...]style{dim, bold, good, bad}[s])
}

func (s state) style() style { return [...]style{dim, bold, plain, bad}[s] }

// cut shortens s to a number of characters.
func cut(s string, length int) string {
	if r := []rune(s); len(r) > length {
		return string(r[:length-1]) + "…"
	}
	return s
}
