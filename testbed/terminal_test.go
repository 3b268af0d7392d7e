package testbed_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/creack/pty"
	"github.com/hinshun/vt10x"

	"github.com/leasehold-go/leasehold"
)

// On a terminal the timeline stays one picture of the width that there is, whatever is logged and however the terminal
// changes. Its last picture stays.
func TestDrawn(t *testing.T) {
	for _, tt := range []struct {
		name, env string
		colours   bool
	}{
		{"colours", "TERM=xterm-256color", true},
		{"none", "NO_COLOR=1", false},
		{"dumb", "TERM=dumb", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCLI(t)
			grant(c.fleet, "getter", "get")
			c.run("leader-with-a-rather-long-name", func(s leasehold.Session) { <-s.Done() }, c.asAdmin(), leasehold.WithLease("job"))
			c.awaitLeader("leader-with-a-rather-long-name")

			cmd := c.command("watch", "job", "--timeline", "--as=getter", "-n", c.ns)
			cmd.Env = append(cmd.Env, "TERM=xterm-256color", "NO_COLOR=", tt.env)
			size := func(columns, rows uint16) *pty.Winsize { return &pty.Winsize{Cols: columns, Rows: rows} }
			master, err := pty.StartWithSize(cmd, size(80, 24))
			if err != nil {
				t.Fatal(err)
			}
			screen := vt10x.New(vt10x.WithSize(80, 24))
			var said syncBuffer
			done := make(chan struct{})
			go func() {
				defer close(done)
				buffer := make([]byte, 4096)
				for {
					n, err := master.Read(buffer)
					if err != nil { // EIO: the tool has ended
						return
					}
					said.Write(buffer[:n])
					screen.Write(buffer[:n])
				}
			}()
			t.Cleanup(func() {
				cmd.Process.Kill()
				cmd.Wait()
				<-done
				master.Close()
			})
			// pictures returns how many there are, and how wide the widest line of the last is.
			pictures := func() (n, width int) {
				for line := range strings.Lines(screen.String()) {
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
				defer func() {
					if t.Failed() {
						t.Logf("the screen:\n%s", screen)
					}
				}()
				c.await(fmt.Sprintf("drawn twice in %d columns", columns), func() bool {
					n, width := pictures()
					return n == 1 && width == columns-1 && strings.Count(said.String()[mark:], "now") >= 2
				})
			}
			drawn(80)
			c.await("logged above it", func() bool {
				return strings.Contains(strings.ReplaceAll(screen.String(), "\n", ""), "the leases are read every two seconds")
			})
			for _, columns := range []uint16{45, 120, 30} {
				screen.Resize(int(columns), 24)
				if err := pty.Setsize(master, size(columns, 24)); err != nil {
					t.Fatal(err)
				}
				drawn(int(columns))
			}
			master.Write([]byte{3}) // Ctrl-C, which the terminal echoes
			if err := cmd.Wait(); err != nil {
				t.Errorf("interrupted: %v", err)
			}
			<-done
			if n, _ := pictures(); n != 1 {
				t.Errorf("%d pictures left behind:\n%s", n, screen)
			}
			if colours := strings.Contains(said.String(), "\x1b[38;5;"); colours != tt.colours {
				t.Errorf("colours: %v", colours)
			}
		})
	}
}

// What is no terminal gets one picture, without colours, at the end.
func TestDrawnInFile(t *testing.T) {
	c := newCLI(t)
	c.start("create", "job").wantCode(0)
	a := c.start("watch", "job", "--timeline", "--for=1500ms")
	a.wantCode(0)
	if got := a.stdout.String(); strings.Count(got, c.ns+"/job") != 1 || strings.Contains(got, "\x1b") {
		t.Errorf("drawn:\n%s", got)
	}
	a = c.start("watch", "job", "--timeline")
	c.standbys()
	a.signal(os.Interrupt)
	a.wantCode(0)
	if got := a.stdout.String(); strings.Count(got, c.ns+"/job") != 1 {
		t.Errorf("drawn:\n%s", got)
	}
}
