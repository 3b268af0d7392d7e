package main

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/leasehold-go/leasehold/testbed/internal/child/childtest"
)

// mainEnv makes the test binary the demo, and a candidate of it.
const mainEnv = "DEMO_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		main()
	}
	if err := flag.Set("test.parallel", "8"); err != nil { // most of them wait; -test.parallel overrides this
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func TestExclusive(t *testing.T) {
	const amber, teal = 1, 2 // processes
	rec := func(at int, pid int, token uint64, what string) record {
		return record{At: time.Duration(at), Who: []string{"", "amber", "teal"}[pid], PID: pid, Token: token,
			What: what}
	}
	lost := func(r record) record {
		r.Lost = true
		return r
	}
	for _, tt := range []struct {
		name    string
		records []record
		closest time.Duration
		want    string // in the error
	}{
		{"handover", []record{
			rec(10, amber, 1, begin), rec(20, amber, 1, work), rec(25, amber, 1, end), rec(28, teal, 2, begin),
			rec(30, teal, 2, end),
		}, 3, ""},
		{"killed", []record{rec(10, amber, 1, begin), rec(20, amber, 1, work), rec(70, teal, 2, begin)}, 50, ""},
		{"frozen, resumed, stopped", []record{
			rec(10, amber, 1, begin), rec(20, amber, 1, work), rec(70, teal, 2, begin), lost(rec(80, amber, 1, end)),
			rec(90, teal, 2, work),
		}, 50, ""},
		{"frozen, resumed, worked on", []record{
			rec(10, amber, 1, begin), rec(70, teal, 2, begin), rec(80, amber, 1, work), lost(rec(81, amber, 1, end)),
			rec(90, teal, 2, work),
		}, 0, "teal (token 2) led for 10ns beside amber (token 1)"},
		{"began too early", []record{
			rec(10, amber, 1, begin), rec(19, teal, 2, begin), rec(20, amber, 1, work),
		}, 0, "beside amber"},
		{"released before the body returned", []record{
			rec(10, amber, 1, begin), rec(19, teal, 2, begin), rec(20, amber, 1, end), rec(30, teal, 2, work),
		}, 0, "beside amber"},
		{"worked on while others came and went", []record{
			rec(10, amber, 1, begin), rec(20, teal, 2, begin), rec(30, teal, 2, end), rec(40, teal, 3, begin),
			rec(50, amber, 1, work),
		}, 0, "token 3) led"},
		{"records in another order than their times", []record{
			rec(28, teal, 2, begin), rec(10, amber, 1, begin), rec(25, amber, 1, work),
		}, 3, ""},
		{"token not greater", []record{rec(10, amber, 2, begin), rec(20, teal, 2, begin)}, 10,
			"teal had fencing token 2 after amber had 2"},
		{"deleted: the same process again", []record{
			rec(10, amber, 1, begin), lost(rec(15, amber, 1, end)), rec(16, amber, 4, begin),
		}, 6, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			closest, err := exclusive(spans(tt.records))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if tt.want == "" && closest != tt.closest {
				t.Errorf("closest %v, want %v", closest, tt.closest)
			}
		})
	}
}

// Two may work at the same time on different keys, not on one.
func TestCheckJournal(t *testing.T) {
	for key, want := range map[string]string{"b": "", "a": "beside x"} {
		name := filepath.Join(t.TempDir(), "journal")
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		x, y := &journal{who: "x", file: f, out: io.Discard}, &journal{who: "y", file: f, out: io.Discard}
		for _, err := range []error{
			x.write(record{At: 10, Key: "a", Token: 1, What: begin}),
			y.write(record{At: 20, Key: key, Token: 2, What: begin}),
			x.write(record{At: 30, Key: "a", Token: 1, What: work}),
			y.write(record{At: 40, Key: key, Token: 2, What: work}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		checked, err := (&place{journal: name}).checkJournal()
		if want == "" && (err != nil || !strings.HasPrefix(checked, "2 sessions")) ||
			want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %q, %v; want %q", key, checked, err, want)
		}
	}
}

func TestJournal(t *testing.T) {
	name := filepath.Join(t.TempDir(), "journal")
	for _, who := range []string{"amber", "teal"} {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		j := &journal{who: who, file: f, out: io.Discard}
		if err := j.write(record{At: 5, Token: 7, What: begin}); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readJournal(bytes.NewReader(data))
	if err != nil || len(got) != 2 || got[0].Who != "amber" || got[1].Who != "teal" || got[1].Token != 7 {
		t.Errorf("read %v, %v", got, err)
	}
	if _, err := readJournal(bytes.NewReader(data[:len(data)-5])); err == nil ||
		!strings.Contains(err.Error(), "line 2") {
		t.Errorf("half a line: %v", err)
	}
}

// example is a timeline in its 20th second: a handover, a kill, a leader that is frozen.
func example() *timeline {
	sec := func(s float64) time.Duration { return time.Hour + time.Duration(s*float64(time.Second)) }
	t := newElection()
	t.start, t.now = sec(0), sec(20)
	t.note = "teal is frozen"
	t.marks = []mark{{sec(4), "a", "SIGTERM"}, {sec(6), "b", "SIGKILL"}, {sec(12), "c", "SIGSTOP"}}
	t.away = []stretch{{sec(2), sec(3)}}
	a, b, c := t.rows[0], t.rows[1], t.rows[2]
	a.sessions = []*session{{row: a, token: 101, worked: stretch{sec(0), sec(4)}, ended: sec(4)}}
	a.lives = []stretch{{sec(0), sec(4)}, {sec(6), still}}
	b.sessions = []*session{{row: b, token: 110, worked: stretch{sec(4), sec(6)}},
		{row: b, token: 140, worked: stretch{sec(9), sec(12)}}}
	b.killed = []time.Duration{sec(6)}
	b.outlived = []stretch{{sec(6), sec(11)}}
	b.lives = []stretch{{sec(0), sec(6)}, {sec(8.5), still}}
	b.frozen = []stretch{{sec(12), still}}
	c.lives = []stretch{{sec(0), still}}
	*t.steps[0] = step{"a", "SIGTERM to the leader", passed, "amber → teal", "3.1 ms", "101 → 110", "at once"}
	t.steps[1].state = failed
	t.steps[2].state = running
	return t
}

func TestFrame(t *testing.T) {
	const want = `
  leasehold  three processes, one Lease, one leader at a time                           20.0 s

                          ▾a  ▾SIGKILL      ▾SIGSTOP
  API server     ━━━━╳╳╳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
  amber          ▏101██████   ─────────────────────────────────
  teal           ─────────▏110✕┄┄┄┄┄─▏140████░░░░░░░░░░░░░░░░░░
  violet         ──────────────────────────────────────────────
                 0s         5s         10s        15s         20s        25s        30s
                 █ leads, with its fencing token   ─ stands by   ┄ dead, its lease expires

  teal is frozen

    EVENT                      WHO TOOK OVER     AFTER     FENCING TOKEN
  ✓ a  SIGTERM to the leader   amber → teal      3.1 ms    101 → 110
  ✗ b  SIGKILL to the leader
  ▸ c  SIGSTOP to the leader
  · d  API server away for 2s
  · e  Lease deleted

  · no two sessions overlapped
`
	if got := text(draw(example(), 96), false); got != want {
		t.Errorf("got:%s\nwant:%s", got, want)
	}
}

// exampleSharing is a timeline in its 20th second: a member was killed, another has joined.
func exampleSharing() *timeline {
	sec := func(s float64) time.Duration { return time.Hour + time.Duration(s*float64(time.Second)) }
	t := newSharing()
	t.start, t.now = sec(0), sec(20)
	t.note = "lime joins"
	t.marks = []mark{{sec(5), "f", "SIGKILL to pink"}, {sec(14), "g", "lime joins"}}
	for i, r := range t.rows[:5] {
		r.process = &process{gone: i == 3}
	}
	for i, key := range t.keys {
		first := t.rows[i/4]
		s := &session{row: first, key: key, token: 1, worked: stretch{sec(2), sec(20)}}
		first.sessions = append(first.sessions, s)
		if i/4 == 3 {
			s.worked.to, s.ended = sec(5), sec(5)
			heir := t.rows[i%3]
			heir.sessions = append(heir.sessions,
				&session{row: heir, key: key, token: 2, worked: stretch{sec(10), sec(20)}})
		}
		if i < 4 && i != 2 {
			s.worked.to, s.ended = sec(16), sec(16)
			t.rows[4].sessions = append(t.rows[4].sessions,
				&session{row: t.rows[4], key: key, token: 3, worked: stretch{sec(16.01), sec(20)}})
		}
	}
	t.rows[3].killed = []time.Duration{sec(5)}
	*t.steps[0] = step{"f", "SIGKILL to a member", passed, "4, from pink", "5.00 s", "5.00 s", "as it expired"}
	t.steps[1].state = running
	return t
}

func TestFrameOfSharing(t *testing.T) {
	const want = `
  leasehold  four processes, sixteen keys, one owner of each at a time                  20.0 s

                                    ▾SIGKILL to pink                  ▾lime joins
  art                   ▏amber████████████████████████████████████████████████▏lime████████████
  books                 ▏amber████████████████████████████████████████████████▏lime████████████
  cars                  ▏amber█████████████████████████████████████████████████████████████████
  dance                 ▏amber████████████████████████████████████████████████▏lime████████████
  earth                 ▏teal██████████████████████████████████████████████████████████████████
  film                  ▏teal██████████████████████████████████████████████████████████████████
  games                 ▏teal██████████████████████████████████████████████████████████████████
  health                ▏teal██████████████████████████████████████████████████████████████████
  ideas                 ▏violet████████████████████████████████████████████████████████████████
  jazz                  ▏violet████████████████████████████████████████████████████████████████
  kids                  ▏violet████████████████████████████████████████████████████████████████
  law                   ▏violet████████████████████████████████████████████████████████████████
  music                 ▏pink███████✕┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄▏amber██████████████████████████████████
  news                  ▏pink███████✕┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄▏teal███████████████████████████████████
  opera                 ▏pink███████✕┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄▏violet█████████████████████████████████
  photos                ▏pink███████✕┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄▏amber██████████████████████████████████
                 0s                 5s                 10s                15s
                 ██ amber 3   ██ teal 5   ██ violet 5   ██ pink   ██ lime 3   ┄ owner dead

  lime joins

    EVENT                      KEYS THAT MOVED   AFTER     LONGEST GAP
  ✓ f  SIGKILL to a member     4, from pink      5.00 s    5.00 s
  ▸ g  another member joins
  · h  a member is replaced

  · every key has an owner
  · no key had two
`
	if got := text(draw(exampleSharing(), 96), false); got != want {
		t.Errorf("got:%s\nwant:%s", got, want)
	}
}

// text returns the frame without spaces at the ends of lines.
func text(f *frame, colours bool) string {
	var b bytes.Buffer
	f.write(&b, colours, "")
	return "\n" + regexp.MustCompile(`(?m) +$`).ReplaceAllString(b.String(), "") + "\n"
}

func TestWidths(t *testing.T) {
	scenes := []*timeline{example(), exampleSharing()}
	wide := drawAll(scenes, 200)
	for _, width := range []int{0, 1, 2, 5, 13, 20, 40, 48, 69, 70, 80, 107, 108, 200} {
		f := drawAll(scenes, width)
		if len(f.lines) != len(wide.lines) {
			t.Errorf("%d columns: %d lines, want %d", width, len(f.lines), len(wide.lines))
		}
		for i, line := range f.lines {
			if len(line) != width {
				t.Errorf("%d columns: line %d has %d", width, i, len(line))
			}
		}
		for _, word := range []string{"3.1 ms", "amber → teal", "a", "5.00 s", "lime"} {
			if width >= 48 && !strings.Contains(text(f, false), word) {
				t.Errorf("%d columns: no %q in %s", width, word, text(f, false))
			}
		}
	}
}

func TestColours(t *testing.T) {
	f := draw(example(), 80)
	if got := text(f, false); strings.Contains(got, "\x1b") {
		t.Errorf("an escape sequence where none is wanted: %q", got)
	}
	got := text(f, true)
	if bare := regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(got, ""); strings.Contains(bare, "\x1b") {
		t.Errorf("an escape sequence that is no colour: %q", bare)
	}
	if want := "\x1b[1m\x1b[38;5;16m\x1b[48;5;214m101\x1b[0m"; !strings.Contains(got, want) {
		t.Errorf("no %q in %q", want, got)
	}
}

func TestSVG(t *testing.T) {
	e := example()
	e.note = `"<&>"`
	svg := draw(e, svgColumns).svg("a & b")
	var words []string
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v in:\n%s", err, svg)
		}
		if chars, ok := token.(xml.CharData); ok {
			words = append(words, string(chars))
		}
	}
	all := strings.Join(words, "|")
	for _, want := range []string{"|a & b|", `|"<&>"|`, "|101|", "|SIGTERM to the leader|", "|amber → teal|"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %s", want, all)
		}
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.00 ms", 310 * time.Microsecond: "0.31 ms", 3140 * time.Microsecond: "3.1 ms",
		314 * time.Millisecond: "314 ms", 4629 * time.Millisecond: "4.63 s",
	} {
		if got := short(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestEnds(t *testing.T) {
	failure := errors.New("exit status 1")
	terminated := exec.Command("sh", "-c", "kill -TERM $$").Run()
	for _, tt := range []struct {
		name  string
		asked syscall.Signal
		err   error
		want  string
	}{
		{"stopped", syscall.SIGTERM, nil, ""},
		{"stopped before it had begun", syscall.SIGTERM, terminated, ""},
		{"killed", syscall.SIGKILL, failure, ""},
		{"failed", 0, failure, "amber ended by itself: exit status 1"},
		{"had enough", 0, nil, "amber ended by itself: exit status 0"},
		{"failed when stopped", syscall.SIGTERM, failure, "amber after SIGTERM: exit status 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tl, p := newElection(), &process{asked: tt.asked}
			tl.rows[0].begin(p, 1)
			if err := tl.see(news{process: p, record: &record{At: 2, Token: 5, What: begin}}); err != nil ||
				tl.leader() == nil {
				t.Fatalf("begin of a session: %v, leader %v", err, tl.leader())
			}
			got := ""
			if err := tl.see(news{process: p, err: tt.err}); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("error %q, want %q", got, tt.want)
			}
			if tl.leader() != nil || !p.gone || tl.newest().worked.to != 2 {
				t.Errorf("afterwards leader %v, gone %v, last work %v", tl.leader(), p.gone, tl.newest().worked.to)
			}
		})
	}
}

// TestDemo plays the whole show.
func TestDemo(t *testing.T) {
	t.Parallel()
	picture := filepath.Join(t.TempDir(), "demo.svg")
	cmd := demoCommand(t, "-svg", picture)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	const pair, time, tokens = `\w+ → \w+ +`, `[0-9.]+ m?s +`, `\d+ → \d+`
	for _, row := range []string{
		`✓ a  SIGTERM to the leader +` + pair + time + tokens,
		`✓ b  SIGKILL to the leader +` + pair + `[0-9.]+ s +` + tokens,
		`✓ c  SIGSTOP to the leader +` + pair + `[0-9.]+ s +` + tokens,
		`✓ d  API server away for 2s +\w+ leads on +– +\d+`,
		`✓ e  Lease deleted +(\w+ itself|\w+ → \w+) +` + time + tokens,
		`✓ no two sessions overlapped +[5-9] sessions, `,
		`✓ f  SIGKILL to a member +4, from pink +[0-9.]+ s +[0-9.]+ s`,
		`✓ g  another member joins +4, to lime +[0-9.]+ s +[0-9.]+ m?s`,
		`✓ h  a member is replaced +\d, amber → blue +` + time + `[0-9.]+ m?s`,
		`✓ every key has an owner +teal 4, violet 4, lime 4, blue 4; \d+ moves, median gap [0-9.]+ m?s`,
		`✓ no key had two +\d\d sessions, `,
	} {
		if !regexp.MustCompile(row).Match(out) {
			t.Errorf("no %s", row)
		}
	}
	if svg, err := os.ReadFile(picture); err != nil || !utf8.Valid(svg) || !bytes.Contains(svg, []byte("overlapped")) {
		t.Errorf("picture of %d bytes, %v", len(svg), err)
	}
	childtest.WantNothingLeft(t, cmd)
}

// TestStopped interrupts the show.
func TestStopped(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		when string // a line says this
		wait time.Duration
		sig  syscall.Signal
		code int
	}{
		{"interrupted at once", "Building", 0, syscall.SIGINT, 130},
		{"interrupted while somebody leads", "leads, with", 0, syscall.SIGINT, 130},
		{"interrupted while the leader is frozen", "is frozen", time.Second, syscall.SIGINT, 130},
		{"interrupted while the API server is away", "does not answer", time.Second, syscall.SIGINT, 130},
		{"interrupted while a dead member has keys", "is killed: its lease expires 5s after its last renewal, then", 0,
			syscall.SIGINT, 130},
		{"killed while keys move", "lime started", 2 * time.Second, syscall.SIGKILL, -1},
		{"killed while the leader is frozen", "is frozen", time.Second, syscall.SIGKILL, -1},
		{"killed while the API server is away", "does not answer", time.Second, syscall.SIGKILL, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := demoCommand(t)
			cmd.Stderr = t.Output()
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for lines := bufio.NewScanner(out); lines.Scan(); {
				t.Log(lines.Text())
				if strings.Contains(lines.Text(), tt.when) {
					time.Sleep(tt.wait)
					if err := cmd.Process.Signal(tt.sig); err != nil {
						t.Error(err)
					}
				}
			}
			_ = cmd.Wait() // the code says it
			if code := cmd.ProcessState.ExitCode(); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			childtest.WantNothingLeft(t, cmd)
		})
	}
}

// demoCommand is the demo with a temporary directory of its own.
func demoCommand(t *testing.T, args ...string) *exec.Cmd {
	if testing.Short() {
		t.Skip("-short: needs a real API server")
	}
	return childtest.Command(t, mainEnv, args...)
}
