package testbed_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/testbed/internal/proxy"
)

// alone is a script that notes where two commands of one key run at the same time: it cannot lock the key, because the
// process that locked it lives. It says in KEY.WHO.pid who runs.
const alone = `k=$LEASEHOLD_KEY; exec 9>$k.lock; flock -n 9 || echo $k >>overlaps; ` +
	`echo "$LEASEHOLD_FENCING_TOKEN" >>$k.tokens; echo $$ >$k.$LEASEHOLD_IDENTITY.new; ` +
	`mv $k.$LEASEHOLD_IDENTITY.new $k.$LEASEHOLD_IDENTITY.pid; `

// running returns the keys whose command runs at a member, and checks what the commands noted.
func (c *cli) running(member string) (keys int) {
	c.Helper()
	if overlaps := c.file("overlaps"); overlaps != "" {
		c.Errorf("commands of one key ran together: %s", overlaps)
	}
	files, err := filepath.Glob(filepath.Join(c.dir, "*."+member+".pid"))
	if err != nil {
		c.Fatal(err)
	}
	for _, file := range files {
		var pid int
		if _, err := fmt.Sscan(c.file(filepath.Base(file)), &pid); err == nil && alive(pid) {
			keys++
		}
	}
	return keys
}

func (c *cli) awaitRunning(want int, member string) {
	c.Helper()
	c.await(fmt.Sprintf("%d commands at %s", want, member), func() bool { return c.running(member) == want })
}

// wantTokens checks that each owner of a key had a higher token than the one before.
func (c *cli) wantTokens() {
	c.Helper()
	files, _ := filepath.Glob(filepath.Join(c.dir, "*.tokens"))
	for _, file := range files {
		last := 0
		for _, word := range strings.Fields(c.file(filepath.Base(file))) {
			var token int
			if _, err := fmt.Sscan(word, &token); err != nil || token <= last {
				c.Errorf("%s: token %s after %d", filepath.Base(file), word, last)
			}
			last = token
		}
	}
}

// The commands of a group follow the keys: a member joins, one is killed, one is asked to stop.
func TestSpreadCommand(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	start := func(member string) *call {
		return c.start("spread", group, "--keys=a,b,c,d", "--duration=5s", "-i", member, "--", "sh", "-c",
			alone+"trap 'exit 0' TERM; while :; do sleep 0.1 9>&-; done")
	}
	x := start("x")
	c.awaitRunning(4, "x")
	y := start("y")
	c.awaitRunning(2, "y")
	c.awaitRunning(2, "x")
	y.signal(syscall.SIGKILL)
	c.awaitRunning(0, "y")
	c.awaitRunning(4, "x")
	z := start("z")
	c.awaitRunning(2, "z")
	x.signal(syscall.SIGTERM)
	x.wantCode(0)
	c.awaitRunning(0, "x")
	c.awaitRunning(4, "z")
	z.signal(syscall.SIGINT)
	z.wantCode(0)
	c.awaitRunning(0, "z")
	c.wantTokens()
}

// A member that is cut off, or stopped as a whole, kills commands that do not heed SIGTERM before others own their
// keys.
func TestSpreadCommandCutOff(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{"network", "stopped"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			c := newCLI(t)
			network := newProxy(t, c.server)
			start := func(member string, args ...string) *call {
				return c.start(append(append([]string{"spread", group, "--buckets=4", "--duration=5s", "-i", member},
					args...),
					"--", "sh", "-c", stubborn+alone+"while :; do sleep 0.1; done")...)
			}
			x := start("x", "--server=https://"+network.Addr, "--tls-server-name=127.0.0.1")
			c.awaitRunning(4, "x")
			y := start("y", "--grace-period=100ms")
			c.await("settled", func() bool { return strings.Contains(y.stderr.String(), "lease acquired") })
			if fault == "network" {
				network.Set(proxy.Rule{Drop: true}, proxy.Rule{Drop: true})
			} else {
				x.signal(syscall.SIGSTOP)
			}
			c.awaitRunning(4, "y")
			c.awaitRunning(0, "x")
			x.signal(syscall.SIGCONT)
			network.Set(proxy.Rule{}, proxy.Rule{})
			network.Reset()
			x.signal(syscall.SIGKILL)
			y.signal(syscall.SIGTERM)
			y.wantCode(0)
			c.awaitRunning(0, "y")
			c.wantTokens()
		})
	}
}

// A command that fails gives its key back, and is run again; its keeper that is killed takes it along.
func TestSpreadCommandFails(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	x := c.start("spread", group, "--keys=a", "--duration=5s", "-i", "x", "--", "sh", "-c",
		alone+"[ -e once ] || { touch once; exit 7; }; echo $PPID >keeper.new; mv keeper.new keeper; "+
			"while :; do sleep 0.1; done")
	c.await("told why", func() bool { return strings.Contains(x.stderr.String(), "the command failed: exit status 7") })
	c.awaitRunning(1, "x")
	pid := c.pid("a.x.pid")
	if keeper := c.pid("keeper"); keeper == os.Getpid() || syscall.Kill(keeper, syscall.SIGKILL) != nil {
		t.Fatalf("keeper %d", keeper)
	}
	c.await("gone with its keeper", func() bool { return !alive(pid) })
	c.await("run again", func() bool { return c.pid("a.x.pid") != pid && c.running("x") == 1 })
	x.signal(syscall.SIGTERM)
	x.wantCode(0)
	c.wantTokens()
	missing := c.start("spread", group, "--keys=a", "--", "./missing")
	missing.wantCode(127)
}

// What spread says to input that it cannot use, and its exit code.
func TestSpreadBadInput(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	for name, content := range map[string]string{"twice": "a\nb\na\n", "empty": "\n\n", "script": "true\n"} {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.admin.Create(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "foreign"}},
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"spread", 125, `missing "--" before COMMAND`},
		{"spread work --keys=a --", 125, `missing COMMAND after "--"`},
		{"spread --keys=a -- true", 125, "missing GROUP: its name is required"},
		{"spread work -- true", 125, "want one of --keys, --keys-from and --buckets"},
		{"spread work --keys=a --buckets=2 -- true", 125, "want one of --keys, --keys-from and --buckets"},
		{"spread work --buckets=0 -- true", 125, "--buckets 0: want 1 to 65536"},
		{"spread work --keys-from=missing -- true", 125, "open missing: no such file or directory"},
		{"spread work --keys-from=twice -- true", 125, `key "a" is there twice`},
		{"spread work --keys=a,,b -- true", 125, "an empty key"},
		{"spread work --keys=" + strings.Repeat("k", 257) + " -- true", 125, "has 257 bytes, want at most 256"},
		{"spread Work --keys=a -- true", 125, "Work"},
		{"spread work --keys=a --weight=-1 -- true", 125, "--weight -1: want 1 to 1000"},
		{"spread work --keys=a --duration=1500ms -- true", 125, "duration"},
		{"spread foreign --keys=a -- true", 125, "not the table of a group"},
		{"spread work --keys=a -- ./script", 126, "permission denied"},
		{"spread work --keys=a -- ./missing", 127, "no such file or directory"},
	} {
		a := c.start(strings.Fields(tt.args)...)
		a.wantCode(tt.code)
		said := a.stderr.String()
		if !strings.Contains(said, tt.want) {
			t.Errorf("%.60s: said %q, want %q", tt.args, said, tt.want)
		}
		t.Logf("$ leasehold %.60s\n%s[exit code %d]", tt.args, said, a.cmd.ProcessState.ExitCode())
	}
}

// startStubborn starts a member whose commands ignore SIGTERM.
func (c *cli) startStubborn(keys, member string) *call {
	return c.start("spread", group, "--keys="+keys, "--duration=5s", "--grace-period=1s", "-i", member, "--",
		"sh", "-c", stubborn+alone+"while :; do sleep 0.1 9>&-; done")
}

// A command that ignores SIGTERM is killed after the grace period, and its key is given on only then.
func TestSpreadCommandIgnoresTerm(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	x := c.startStubborn("a,b", "x")
	c.awaitRunning(2, "x")
	y := c.startStubborn("a,b", "y")
	c.awaitRunning(1, "y") // after a move
	c.awaitRunning(1, "x")
	began := time.Now()
	x.signal(syscall.SIGTERM)
	x.wantCode(0)
	if took := time.Since(began); took < time.Second {
		t.Errorf("it ended %v after SIGTERM, and its command ignores that", took)
	}
	c.awaitRunning(0, "x")
	c.awaitRunning(2, "y")
	if said := x.stderr.String(); !strings.Contains(said, "sent SIGKILL") ||
		!strings.Contains(said, "the grace period ended") {
		t.Errorf("it said %s", said)
	}
	y.signal(syscall.SIGTERM)
	y.wantCode(0)
	c.wantTokens()
	t.Logf("the log of x:\n%s", x.stderr.String())
}

// A member whose Lease is deleted kills its commands at once, and joins again; nobody else runs them before they have
// ended.
func TestSpreadCommandLeaseDeleted(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	x := c.startStubborn("a,b,c,d", "x")
	c.awaitRunning(4, "x")
	y := c.startStubborn("a,b,c,d", "y")
	c.awaitRunning(2, "y")
	c.awaitRunning(2, "x")
	if err := c.admin.Delete(t.Context(), c.member("x"), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.await("told", func() bool { return strings.Contains(x.stderr.String(), "lease lost") })
	c.awaitRunning(0, "x")
	c.awaitRunning(2, "x")
	c.awaitRunning(2, "y")
	for _, a := range []*call{x, y} {
		a.signal(syscall.SIGKILL) // the commands ignore SIGTERM
		a.wantCode(-1)
	}
	c.awaitRunning(0, "x")
	c.awaitRunning(0, "y")
	c.wantTokens()
	t.Logf("the log of x:\n%s", x.stderr.String())
}

// A command that ends at once does not run in a loop: there is a pause, which grows if it fails. The other keys do not
// wait.
func TestSpreadCommandEndsAtOnce(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	began := time.Now()
	x := c.start("spread", group, "--keys=fails,ends,lasts", "--duration=5s", "-i", "x", "--", "sh", "-c",
		`date +%s.%N >>$LEASEHOLD_KEY.runs; case $LEASEHOLD_KEY in fails) exit 3;; ends) exit 0;; esac; `+
			alone+`exec sleep 600 9>&-`)
	runs := func(key string) int { return len(strings.Fields(c.file(key + ".runs"))) }
	c.awaitRunning(1, "x")
	c.await("run again and again", func() bool { return runs("fails") >= 4 && runs("ends") >= 8 })
	lasted := time.Since(began)
	const pause = 500 * time.Millisecond // half of the renew interval
	if n := runs("ends"); time.Duration(n-1)*pause*8/10 > lasted {
		t.Errorf("%d runs of a command that ends at once within %v", n, lasted)
	}
	if fails, ends := runs("fails"), runs("ends"); fails >= ends {
		t.Errorf("%d runs of one that fails, %d of one that does not", fails, ends)
	}
	var times []float64
	for _, word := range strings.Fields(c.file("fails.runs")) {
		at, err := strconv.ParseFloat(word, 64)
		if err != nil {
			t.Fatal(err)
		}
		times = append(times, at)
	}
	if last := times[len(times)-1] - times[len(times)-2]; last < 2*pause.Seconds() {
		t.Errorf("a pause of %.1f s after %d failures, want it to grow", last, len(times)-1)
	}
	if n := runs("lasts"); n != 1 {
		t.Errorf("%d runs of a command that lasts", n)
	}
	x.signal(syscall.SIGTERM)
	x.wantCode(0)
	t.Logf("%d runs that fail, %d that end, in %v; the log:\n%s", runs("fails"), runs("ends"), lasted,
		x.stderr.String())
}

// What shares, watch and report say of a group on the API server while members come and go.
func TestGroupTool(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	start := func(member string) *call {
		return c.start("spread", group, "--keys=a,b,c,d", "--duration=3s", "-i", member, "--", "sh", "-c",
			alone+"exec sleep 600 9>&-")
	}
	eye := c.start("watch", "--group", group, "-o", "json")
	x := start("x")
	c.awaitRunning(4, "x")
	y := start("y")
	c.awaitRunning(2, "y")
	c.awaitRunning(2, "x")
	shares := c.start("shares", group)
	shares.wantCode(0)
	for _, want := range []string{"MEMBER   WEIGHT   KEYS   SINCE\n", "x        1        2", "y        1        2"} {
		if !strings.Contains(shares.stdout.String(), want) {
			t.Errorf("no %q in\n%s", want, shares.stdout.String())
		}
	}
	t.Logf("$ leasehold shares\n%s", shares.stdout.String())
	y.signal(syscall.SIGKILL)
	c.awaitRunning(4, "x")
	x.signal(syscall.SIGTERM)
	x.wantCode(0)
	c.await("told that it left", func() bool {
		return strings.Contains(eye.stdout.String(), `"its owner left"`)
	})
	eye.signal(syscall.SIGINT)
	eye.wantCode(0)
	for _, want := range []string{"asked back for balance", "its owner's lease expired"} {
		if !strings.Contains(eye.stdout.String(), want) {
			t.Errorf("no %q in\n%s", want, eye.stdout.String())
		}
	}
	if err := os.WriteFile(filepath.Join(c.dir, "recording"), []byte(eye.stdout.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	report := c.start("report", "--from", "recording", "--html", "-")
	report.wantCode(0)
	for _, want := range []string{"4 keys, 2 members seen, 4 moves", "asked back for balance: 2 moves",
		"its owner&#39;s lease expired: 2 moves"} {
		if !strings.Contains(report.stdout.String(), want) {
			t.Errorf("no %q on the page", want)
		}
	}
}
