package testbed_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

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
