package testbed_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/creack/pty"
	"github.com/hinshun/vt10x"

	"github.com/leasehold-go/leasehold"
)

// On a terminal the timeline is one picture of the terminal's width, also after log lines and changes of its size. The
// last picture remains.
func TestDrawn(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, env string
		colours   bool
	}{
		{"colours", "TERM=xterm-256color", true},
		{"none", "NO_COLOR=1", false},
		{"dumb", "TERM=dumb", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCLI(t)
			grant(c.fleet, "getter", "get")
			c.run("leader-with-a-rather-long-name", func(s leasehold.Session) { <-s.Done() }, c.asAdmin(),
				leasehold.WithLease("job"))
			c.awaitLeader("leader-with-a-rather-long-name")

			cmd := c.command("watch", "job", "--timeline", "--as=getter", "-n", c.ns)
			cmd.Env = append(cmd.Env, "TERM=xterm-256color", "NO_COLOR=", tt.env)
			terminal := openTerminal(t, cmd, 80, 24)
			said := &terminal.said
			// pictures returns the number of pictures, and the width of the widest line of the last.
			pictures := func() (n, width int) {
				for line := range strings.Lines(terminal.shown()) {
					line = strings.TrimRight(line, " \n")
					if line == c.ns+"/job" {
						n, width = n+1, 0
					}
					width = max(width, len([]rune(line)))
				}
				return n, width
			}
			drawn := func(columns int) {
				t.Helper()
				mark := len(said.String())
				c.await(fmt.Sprintf("drawn twice in %d columns", columns), func() bool {
					n, width := pictures()
					return n == 1 && width == columns-1 && strings.Count(said.String()[mark:], "now") >= 2
				})
			}
			drawn(80)
			c.await("logged above it", func() bool {
				return strings.Contains(strings.ReplaceAll(terminal.shown(), "\n", ""),
					"the leases are read every two seconds")
			})
			for _, columns := range []int{45, 120, 30} {
				if err := terminal.resize(columns, 24); err != nil {
					t.Fatal(err)
				}
				drawn(columns)
			}
			terminal.typed("\x03") // Ctrl-C, which the terminal echoes
			if err := cmd.Wait(); err != nil {
				t.Errorf("interrupted: %v", err)
			}
			<-terminal.ended
			if n, _ := pictures(); n != 1 {
				t.Errorf("%d pictures left behind:\n%s", n, terminal.shown())
			}
			if colours := strings.Contains(said.String(), "\x1b[38;5;"); colours != tt.colours {
				t.Errorf("colours: %v", colours)
			}
		})
	}
}

// A file gets one picture, without colours, at the end.
func TestDrawnInFile(t *testing.T) {
	c := newCLI(t)
	c.start("create", "job").wantCode(0)
	a := c.start("watch", "job", "--timeline", "--for=1500ms")
	a.wantCode(0)
	if got := a.stdout.String(); strings.Count(got, c.ns+"/job") != 1 || strings.Contains(got, "\x1b") {
		t.Errorf("drawn:\n%s", got)
	}
}

// A terminal runs a process and keeps its output.
type terminal struct {
	*os.File
	said  syncBuffer
	ended chan struct{} // closed when no process has the terminal open

	mu     sync.Mutex // protects following
	screen vt10x.Terminal
}

// openTerminal starts cmd on a terminal. It is killed at the end of the test.
func openTerminal(t *testing.T, cmd *exec.Cmd, columns, rows int) *terminal {
	t.Helper()
	file, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: uint16(columns), Rows: uint16(rows)})
	if err != nil {
		t.Fatal(err)
	}
	tt := &terminal{File: file, screen: vt10x.New(vt10x.WithSize(columns, rows)), ended: make(chan struct{})}
	go func() {
		defer close(tt.ended)
		buffer := make([]byte, 4096)
		for {
			n, err := file.Read(buffer)
			if err != nil {
				return // EIO: closed on the other side
			}
			tt.said.Write(buffer[:n])
			tt.mu.Lock()
			tt.screen.Write(buffer[:n])
			tt.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the screen:\n%s", tt.shown())
		}
		cmd.Process.Kill()
		cmd.Wait()
		<-tt.ended
		file.Close()
	})
	return tt
}

// resize changes the size, and wraps the lines that are shown as many terminals do.
func (t *terminal) resize(columns, rows int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	screen := vt10x.New(vt10x.WithSize(columns, rows))
	for line := range strings.Lines(strings.TrimRight(t.screen.String(), " \n")) {
		screen.Write([]byte(strings.TrimRight(line, " \n") + "\r\n"))
	}
	t.screen = screen
	return pty.Setsize(t.File, &pty.Winsize{Cols: uint16(columns), Rows: uint16(rows)})
}

// shown returns the text on the screen.
func (t *terminal) shown() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimRight(t.screen.String(), " \n")
}

func (t *terminal) typed(text string) { t.WriteString(text) }

// line returns the last line that is not empty.
func (t *terminal) line() string {
	lines := strings.Split(t.shown(), "\n")
	return strings.TrimRight(lines[len(lines)-1], " ")
}
