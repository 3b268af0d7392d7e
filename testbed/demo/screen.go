package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// A colour is one of the 256 of a terminal, and the same for SVG.
type colour struct {
	number int
	hex    string
}

// A look has the colours of a style.
type look struct {
	fore, back colour // the zero colour is the terminal's own
	bold       bool
	fill       rune // drawn instead of a space where there are no colours
}

var (
	grey = colour{245, "#7d8590"}
	dark = colour{16, "#0b0f14"}

	amberColour  = colour{214, "#f5a623"}
	tealColour   = colour{43, "#2dd4bf"}
	violetColour = colour{141, "#b794f6"}
	pinkColour   = colour{212, "#f472b6"}
	limeColour   = colour{149, "#a3e635"}
	blueColour   = colour{75, "#60a5fa"}
)

var palette = map[style]look{
	bold:   {bold: true},
	dim:    {fore: grey},
	good:   {fore: colour{78, "#4ade80"}, bold: true},
	bad:    {fore: colour{203, "#f87171"}, bold: true},
	ice:    {fore: colour{117, "#7dd3fc"}},
	amber:  {fore: amberColour, bold: true},
	teal:   {fore: tealColour, bold: true},
	violet: {fore: violetColour, bold: true},
	pink:   {fore: pinkColour, bold: true},
	lime:   {fore: limeColour, bold: true},
	blue:   {fore: blueColour, bold: true},

	amber.bar():    {fore: dark, back: amberColour, fill: '█'},
	teal.bar():     {fore: dark, back: tealColour, fill: '█'},
	violet.bar():   {fore: dark, back: violetColour, fill: '█'},
	pink.bar():     {fore: dark, back: pinkColour, fill: '█'},
	lime.bar():     {fore: dark, back: limeColour, fill: '█'},
	blue.bar():     {fore: dark, back: blueColour, fill: '█'},
	amber.label():  {fore: dark, back: amberColour, bold: true},
	teal.label():   {fore: dark, back: tealColour, bold: true},
	violet.label(): {fore: dark, back: violetColour, bold: true},
	pink.label():   {fore: dark, back: pinkColour, bold: true},
	lime.label():   {fore: dark, back: limeColour, bold: true},
	blue.label():   {fore: dark, back: blueColour, bold: true},
}

// runs calls f for the pieces of a line that have one style.
func runs(line []cell, f func(column int, text string, s style)) {
	for from := 0; from < len(line); {
		to := from
		var text strings.Builder
		for ; to < len(line) && line[to].style == line[from].style; to++ {
			text.WriteRune(line[to].rune)
		}
		f(from, text.String(), line[from].style)
		from = to
	}
}

// write writes the frame as lines of text, each after prefix, without the spaces at their ends.
func (f *frame) write(w io.Writer, colours bool, prefix string) {
	for i, line := range f.lines {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprint(w, prefix)
		runs(trim(line), func(_ int, text string, s style) {
			l := palette[s]
			if !colours {
				if l.fill != 0 {
					text = strings.ReplaceAll(text, " ", string(l.fill))
				}
				fmt.Fprint(w, text)
				return
			}
			fmt.Fprint(w, l.escape(), text, "\x1b[0m")
		})
	}
}

func trim(line []cell) []cell {
	for len(line) > 0 && line[len(line)-1] == (cell{' ', plain}) {
		line = line[:len(line)-1]
	}
	return line
}

func (l look) escape() string {
	var s strings.Builder
	if l.bold {
		s.WriteString("\x1b[1m")
	}
	if l.fore.number != 0 {
		fmt.Fprintf(&s, "\x1b[38;5;%dm", l.fore.number)
	}
	if l.back.number != 0 {
		fmt.Fprintf(&s, "\x1b[48;5;%dm", l.back.number)
	}
	return s.String()
}

// A screen shows what happens: on a terminal as frames drawn in place, otherwise as lines.
type screen struct {
	out       *os.File
	live      bool
	colours   bool
	cancelled func(error) // called when output fails

	mu    sync.Mutex // protects following: an abort comes from another goroutine than the drawing
	open  bool       // the terminal's second page is shown
	width int        // of the last frame
}

func newScreen(out *os.File, cancelled func(error)) *screen {
	live := term.IsTerminal(int(out.Fd())) && os.Getenv("TERM") != "dumb"
	return &screen{out: out, live: live, colours: live && os.Getenv("NO_COLOR") == "", cancelled: cancelled}
}

func (s *screen) write(b []byte) {
	if _, err := s.out.Write(b); err != nil {
		s.cancelled(fmt.Errorf("nobody is watching: %w", err))
	}
}

// say prints a line, unless frames show it.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open {
		s.write(fmt.Appendf(nil, format+"\n", args...))
	}
}

// progress shows for how long something has been under way, in place on a terminal.
func (s *screen) progress(text string) {
	if s.live {
		s.write([]byte("\r\x1b[2K" + text))
	} else {
		s.write([]byte(text + "\n"))
	}
}

// size returns the present size of the terminal.
func (s *screen) size() (width, height int) {
	width, height, err := term.GetSize(int(s.out.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		return 100, 100
	}
	return width, height
}

// Sequences that terminals have in common: ECMA-48, and DEC's private modes as xterm describes them.
const (
	enter    = "\x1b[?1049h\x1b[?25l\x1b[?7l" // second page, no cursor, cut long lines
	leave    = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	hold     = "\x1b[?2026h" // show nothing until release
	release  = "\x1b[?2026l"
	home     = "\x1b[H"
	erase    = "\x1b[2K" // the line
	eraseAll = "\x1b[2J"
	below    = "\x1b[J"
)

// show draws the timeline on a terminal, as large as it is now.
func (s *screen) show(t *timeline) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.live {
		return
	}
	var b bytes.Buffer
	if !s.open {
		b.WriteString(enter)
		s.open = true
	}
	b.WriteString(hold)
	width, height := s.size()
	if width != s.width {
		b.WriteString(eraseAll)
		s.width = width
	}
	f := draw(t, width)
	f.lines = f.lines[:min(len(f.lines), height)]
	b.WriteString(home)
	f.write(&b, s.colours, erase)
	b.WriteString(below + release)
	s.write(b.Bytes())
}

// close restores the terminal.
func (s *screen) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		s.open = false
		s.write([]byte(leave))
	}
}

// final prints the last frames, which stay.
func (s *screen) final(scenes []*timeline) {
	s.close()
	if len(scenes) == 0 {
		return
	}
	var b bytes.Buffer
	width, _ := s.size()
	drawAll(scenes, width).write(&b, s.colours, "")
	s.say("\n%s", b.String())
}
