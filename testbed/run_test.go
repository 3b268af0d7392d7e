package testbed_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/internal/proxy"
)

// fullPipe returns the writing end of a pipe that nobody reads and that has no room left.
func fullPipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	fd := int(w.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{4096, 1} {
		for {
			if _, err := unix.Write(fd, make([]byte, size)); err == unix.EAGAIN {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	return w
}

// Nothing waits for a log that nobody reads: neither the end of the command when the lease is lost, nor SIGTERM.
func TestRunBlockedLog(t *testing.T) {
	t.Parallel()
	quiet := say("started") + "exec 2>/dev/null; exec sleep 600"
	t.Run("the lease is lost", func(t *testing.T) {
		t.Parallel()
		c := newCLI(t)
		network := newProxy(t, c.server)
		cmd := c.command("run", "job", "--log-level=debug", "--duration=8s", "--server=https://"+network.Addr,
			"--tls-server-name=127.0.0.1", "--", "sh", "-c", quiet)
		cmd.Stderr = fullPipe(t)
		a := c.startCmd(cmd)
		pid := c.pid("started")
		c.run("two", func(s leasehold.Session) {
			if alive(pid) {
				t.Error("the command runs while another has the lease")
			}
			<-s.Done()
		}, c.asAdmin(), leasehold.WithLease("job"), leasehold.WithDuration(8*time.Second))
		network.Set(proxy.Rule{Drop: true}, proxy.Rule{Drop: true})
		c.awaitLeader("two")
		a.wantCode(123)
	})
	for _, command := range []string{"run", "claim"} {
		t.Run("SIGTERM of "+command, func(t *testing.T) {
			t.Parallel()
			c := newCLI(t)
			args := []string{command, "job", "--identity=me"}
			want := 143
			if command == "run" {
				args = append(args, "--", "sh", "-c", quiet)
			} else {
				want = 0
			}
			cmd := c.command(args...)
			cmd.Stderr = fullPipe(t)
			a := c.startCmd(cmd)
			if command == "run" {
				c.pid("started")
			} else {
				c.await("claimed", func() bool { return a.stdout.String() != "" })
			}
			began := time.Now()
			a.signal(syscall.SIGTERM)
			c.await("released", func() bool { return c.holder("job") == "" })
			a.wantCode(want)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v to end", took)
			}
		})
	}
}

// Nor does a command wait for it that says what it does.
func TestBlockedLog(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	claim := c.start("claim", "job", "--identity=me")
	c.await("claimed", func() bool { return claim.stdout.String() != "" })
	blocked := func(args ...string) *call {
		cmd := c.command(args...)
		cmd.Stderr = fullPipe(t)
		return c.startCmd(cmd)
	}
	report := blocked("report", "job", "--for=1s", "--html=page.html")
	c.await("reported", func() bool { return strings.Contains(c.file("page.html"), "1 term") })
	report.wantCode(0)
	release := blocked("release", "job", "--force", "--holder=me")
	c.await("released", func() bool { return c.holder("job") == "" })
	release.wantCode(0)
	claim.wantCode(123)
}

// A reader of the log that goes away does not end the tool, and so neither the command nor the lease.
func TestRunBrokenPipe(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	cmd := c.command("run", "job", "--log-level=debug", "--", "sh", "-c", "sleep 1; exit 7")
	cmd.Stderr = w
	a := c.startCmd(cmd)
	a.wantCode(7)
	if h := c.holder("job"); h != "" {
		t.Errorf("afterwards held by %q", h)
	}
}

// leaving are scripts in which away.sh leaves the process group of the command, by how it does.
var leaving = map[string]string{
	"timeout": `timeout 3600 ./away.sh & wait`,
	"set -m":  `bash -c 'set -m; ./away.sh & wait'; exit`,
	"setsid":  `setsid ./away.sh & wait`,
	"daemon":  `(setsid ./away.sh &); exec sleep 600`,
}

// A process that left the process group ends with the lease, whatever happens to the tool.
func TestRunDescendants(t *testing.T) {
	t.Parallel()
	for name, script := range leaving {
		start := func(t *testing.T) (*cli, *call, int) {
			t.Parallel()
			c := newCLI(t)
			if err := os.WriteFile(c.dir+"/away.sh",
				[]byte("#!/bin/sh\ntrap '' TERM INT HUP\n"+say("away")+"while :; do sleep 0.1; done\n"),
				0o755); err != nil {
				t.Fatal(err)
			}
			a := c.start("run", "job", "--duration=6s", "--grace-period=1s", "--identity=one", "--", "sh", "-c", script)
			return c, a, c.pid("away")
		}
		t.Run(name+", SIGTERM", func(t *testing.T) {
			c, a, pid := start(t)
			a.signal(syscall.SIGTERM)
			for c.holder("job") != "" {
				time.Sleep(5 * time.Millisecond)
			}
			if alive(pid) {
				t.Error("it runs without the lease")
			}
			<-a.done
		})
		t.Run(name+", the tool is killed", func(t *testing.T) {
			c, a, pid := start(t)
			a.signal(syscall.SIGKILL)
			c.await("gone with the tool", func() bool { return !alive(pid) })
			if h := c.holder("job"); h != "one" {
				t.Errorf("it outlived the lease, which %q holds", h)
			}
			a.wantCode(-1)
		})
		t.Run(name+", the tool is stopped", func(t *testing.T) {
			c, a, pid := start(t)
			a.signal(syscall.SIGSTOP)
			c.run("two", func(s leasehold.Session) {
				if alive(pid) {
					t.Error("it runs while another has the lease")
				}
				<-s.Done()
			}, c.asAdmin(), leasehold.WithLease("job"), leasehold.WithDuration(6*time.Second))
			c.awaitLeader("two")
			a.signal(syscall.SIGCONT)
			a.wantCode(123)
		})
	}
}

// A lease that its holder stopped renewing can be acquired by a process that waits for it, and the message says so.
func TestRunExpired(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	crashed := func(name string) {
		renewed := metav1.NewMicroTime(time.Now().Add(-24 * time.Second))
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{
			HolderIdentity: new("dead"), LeaseDurationSeconds: new(int32(2)), LeaseTransitions: new(int32(1)),
			AcquireTime: &renewed, RenewTime: &renewed,
		}}
		if _, err := c.admin.Create(t.Context(), l, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	crashed("job")
	crashed("claimed")
	crashed("again")
	crashed("some-0")
	crashed("some-1")
	// Written by hand: who wrote this will never renew it.
	patched := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "patched"},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: new("hand")}}
	if _, err := c.admin.Create(t.Context(), patched, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	held := c.start("run", "held", "--identity=alive", "--", "sh", "-c", say("started")+"exec sleep 600")
	c.pid("started")
	age := regexp.MustCompile(`for [2-9][0-9]s`) // grows while the tests run
	const expired = `error: leasehold: lease held by "dead", not renewed for 24s; free in at most 2s with --wait 3s` +
		"\n"
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no wait", []string{"run", "job", "--no-wait"}, 124, expired},
		{"no wait, a code of its own", []string{"run", "job", "--no-wait", "--held-exit-code=75"}, 75, expired},
		{"no wait, no failure", []string{"run", "job", "--no-wait", "-E", "0"}, 0,
			strings.TrimPrefix(expired, "error: ")},
		{"no wait for slots", []string{"run", "some", "--slots=2", "--no-wait"}, 124,
			`error: leasehold: lease held: all 2 slots, by "dead", "dead"; some-0 held by "dead", ` +
				"not renewed for 24s; free in at most 2s with --wait 3s\n"},
		{"a short wait for slots", []string{"run", "some", "--slots=2", "--wait=300ms"}, 0, ""},
		{"a short wait for a holder that is alive", []string{"run", "held", "--wait=300ms"}, 124,
			`error: the lease was not acquired within 300ms: held by "alive", renewed `},
		{"the same, a code of its own", []string{"run", "held", "--wait=300ms", "--held-exit-code=3"}, 3, "error: "},
		{"a short wait for one that is dead", []string{"run", "job", "--wait=300ms"}, 0, ""},
		{"a wait that ends before the Lease is read", []string{"run", "again", "--wait=1ns"}, 0, ""},
		{"no wait for a holder without times", []string{"run", "patched", "--no-wait", "--duration=2s"}, 124,
			`held by "hand", never renewed; free in at most 2s with --wait 3s`},
		{"a short wait for a holder without times", []string{"run", "patched", "--wait=1ms", "--duration=2s"}, 0, ""},
		{"claimed by a short wait", []string{"claim", "claimed", "--wait=300ms"}, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			os.Remove(c.dir + "/ran")
			args := tt.args
			if args[0] == "run" {
				args = append(args, "--", "touch", "ran")
			}
			a := c.start(args...)
			if args[0] == "claim" {
				c.await("claimed", func() bool { return strings.Contains(a.stdout.String(), "holding") })
				a.signal(syscall.SIGTERM)
			}
			a.wantCode(tt.code)
			if got := age.ReplaceAllString(a.stderr.String(), "for 24s"); !strings.Contains(got, tt.want) {
				t.Errorf("it said %q, want %q", got, tt.want)
			}
			if ran := c.file("ran") != "" || exists(c.dir+"/ran"); ran != (tt.want == "" && args[0] == "run") {
				t.Errorf("the command ran: %v", ran)
			}
		})
	}
	held.signal(syscall.SIGTERM)
	held.wantCode(143)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// The log says when the command ended, which processes are waited for, and that they were killed.
func TestRunLog(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	a := c.start("run", "job", "--grace-period=300ms", "--", "sh", "-c",
		`sh -c "trap '' TERM; `+strings.ReplaceAll(say("left"), "$",
			`\$`)+`while :; do sleep 0.1; done" & while ! [ -e left ]; do sleep 0.05; done; exit 4`)
	pid := c.pid("left")
	a.wantCode(4)
	at := 0
	for _, want := range []string{
		`msg="command started"`, `msg="command ended" exitCode=4 after=`, fmt.Sprintf(`waitingFor="[%d (sh)`,
			pid), "gracePeriod=300ms",
		`level=WARN msg="sent SIGKILL" reason="the grace period ended" processes="[` + fmt.Sprintf("%d (sh)", pid),
		`msg="all processes of the command ended" after=`, `msg="lease released"`,
	} {
		i := strings.Index(a.stderr.String()[at:], want)
		if i < 0 {
			t.Fatalf("no %s after byte %d of\n%s", want, at, a.stderr.String())
		}
		at += i
	}
}
