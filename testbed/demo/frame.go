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
	pink
	lime
	blue
	bars   // bars + amber is an amber bar
	labels = bars * 2
)

// bar returns the style of a piece of a bar, label that of the text in it.
func (s style) bar() style   { return bars + s }
func (s style) label() style { return labels + s }

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

// drawAll returns the frames of some scenes, one below the other.
func drawAll(scenes []*timeline, width int) *frame {
	all := &frame{width: width}
	for i, t := range scenes {
		if i > 0 {
			all.line()
		}
		all.lines = append(all.lines, draw(t, width).lines...)
	}
	return all
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
	next = f.text(next+2, t.title, dim)
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

// chart draws the events, what happens in the rows or to the keys, and the time.
func (f *frame) chart(t *timeline) {
	s := scale{start: t.start, column: wideLabels, whole: max(t.horizon, t.now-t.start)}
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

	if t.keys == nil {
		f.server(t, s)
		for _, r := range t.rows {
			f.row(t, r, s)
		}
	}
	for _, key := range t.keys {
		f.lane(t, key, s)
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
	if t.keys == nil {
		f.text(s.column, "█ leads, with its fencing token   ─ stands by   ┄ dead, its lease expires", dim)
	} else {
		f.members(t, s)
	}
}

// server draws when the API server answers.
func (f *frame) server(t *timeline, s scale) {
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
		f.bar(session, fmt.Sprint(session.token), s)
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

// bar draws for how long a session worked.
func (f *frame) bar(session *session, label string, s scale) {
	style, from, to := session.row.style, s.of(session.worked.from), s.of(session.worked.to)
	for c := from; c <= to; c++ {
		f.text(c, " ", style.bar())
	}
	f.text(from, "▏", style.bar()) // separates it from a bar before
	if len(label)+2 <= to-from+1 {
		f.text(from+1, label, style.label())
	}
}

// lane draws who works on a key.
func (f *frame) lane(t *timeline, key string, s scale) {
	f.line()
	f.text(margin, key, plain)
	all := t.sessions(key)
	for i, session := range all {
		f.bar(session, session.row.name, s)
		next := t.now
		if i+1 < len(all) {
			next = all[i+1].worked.from
		}
		for _, at := range session.row.killed {
			if at < session.worked.from || at > next {
				continue
			}
			for c := s.of(at) + 1; c <= s.of(next); c++ {
				f.text(c, "┄", session.row.style)
			}
			f.text(s.of(at), "✕", bad)
		}
	}
}

// members draws the colours of the members, and how many keys each works on.
func (f *frame) members(t *timeline, s scale) {
	next, owned := s.column, t.owned()
	for _, r := range t.rows {
		if r.process == nil {
			continue
		}
		next = f.text(next, "  ", r.style.bar())
		if r.process.gone {
			next = f.text(next+1, r.name, dim) + 3
		} else {
			next = f.text(next+1, fmt.Sprintf("%s %d", r.name, owned[r]), r.style) + 3
		}
	}
	f.text(next, "┄ owner dead", dim)
}

// A column is one of the table's; each step has a text in it.
type column struct {
	name  string
	width int
	text  func(*step) string
}

// table draws the outcomes of the events, in as many columns as there is room for, and the checks.
func (f *frame) table(t *timeline) {
	columns := []column{
		{t.columns[0], 27, func(s *step) string { return s.key + "  " + s.event }},
		{t.columns[1], 18, func(s *step) string { return s.who }},
		{t.columns[2], 10, func(s *step) string { return s.after }},
		{t.columns[3], 15, func(s *step) string { return s.tokens }},
		{t.columns[4], 31, func(s *step) string { return s.remark }},
	}
	room := f.width - 2*margin - 2
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
	for _, check := range t.checks {
		f.line()
		next := f.text(margin+2, check.event, check.state.style())
		f.text(next+2, check.remark, dim)
		f.sign(check.state)
	}
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
