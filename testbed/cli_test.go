package testbed_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
	"github.com/leasehold-go/leasehold/testbed/internal/proxy"
)

// cli runs cmd/leasehold, which is built once, against the real API server.
type cli struct {
	*fleet
	dir        string            // the working directory of commands
	podConfigs map[string]string // kubeconfigs for the service accounts of the manifests
}

var built struct {
	once sync.Once
	path string
	err  error
}

func newCLI(t *testing.T) *cli {
	server := controlplane.ForTest(t)
	built.once.Do(func() {
		dir, err := os.MkdirTemp("", "leasehold-")
		if err != nil {
			built.err = err
			return
		}
		built.path = filepath.Join(dir, "leasehold")
		out, err := exec.Command("go", "build", "-o", built.path,
			"github.com/leasehold-go/leasehold/cmd/leasehold").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return &cli{fleet: newFleet(t, server), dir: t.TempDir(), podConfigs: map[string]string{}}
}

// removeCLI removes what newCLI built.
func removeCLI() {
	if built.path != "" {
		os.RemoveAll(filepath.Dir(built.path))
	}
}

// A call is one call of the tool.
type call struct {
	*cli
	cmd    *exec.Cmd
	stdout syncBuffer
	stderr syncBuffer
	done   chan struct{}
}

func (c *cli) command(args ...string) *exec.Cmd { return c.wrapped(nil, args...) }

func (c *cli) wrapped(wrapper []string, args ...string) *exec.Cmd {
	argv := append(append(wrapper, built.path), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.server.Kubeconfig(), "LEASEHOLD_NAMESPACE=inherited")
	return cmd
}

// start starts the tool in the test's namespace. It is killed at the end of the test.
func (c *cli) start(args ...string) *call { return c.startCmd(c.command(args...)) }

func (c *cli) startCmd(cmd *exec.Cmd) *call {
	c.Helper()
	for i, arg := range cmd.Args {
		if arg == "--" || i == len(cmd.Args)-1 {
			if arg != "--" {
				i++
			}
			cmd.Args = append(append(append([]string{}, cmd.Args[:i]...), "-n", c.ns), cmd.Args[i:]...)
			break
		}
	}
	a := &call{cli: c, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout = &a.stdout
	if cmd.Stderr == nil {
		cmd.Stderr = io.MultiWriter(&a.stderr, &c.log)
	}
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	go func() {
		defer close(a.done)
		cmd.Wait()
	}()
	c.Cleanup(func() {
		cmd.Process.Kill()
		<-a.done
	})
	return a
}

// code waits for the tool to end and returns its exit code, -1 if a signal ended it.
func (a *call) code() int {
	a.Helper()
	select {
	case <-a.done:
	case <-time.After(time.Minute):
		a.signal(syscall.SIGQUIT) // prints its goroutines
		<-a.done
		a.Fatalf("still running after a minute: %v\n%s", a.cmd.Args, a.stderr.String())
	}
	return a.cmd.ProcessState.ExitCode()
}

func (a *call) wantCode(want int) {
	a.Helper()
	if got := a.code(); got != want {
		a.Errorf("%v: exit code %d, want %d\n%s", a.cmd.Args[1:], got, want, a.stderr.String())
	}
}

func (a *call) signal(sig os.Signal) {
	a.Helper()
	if err := a.cmd.Process.Signal(sig); err != nil {
		a.Fatal(err)
	}
}

// file returns the content of a file that a command writes; "" before.
func (c *cli) file(name string) string {
	content, _ := os.ReadFile(filepath.Join(c.dir, name))
	return strings.TrimSpace(string(content))
}

// pid waits until a command has written its process ID to a file.
func (c *cli) pid(name string) int {
	c.Helper()
	var pid int
	c.await(name+" written", func() bool {
		var err error
		pid, err = strconv.Atoi(c.file(name))
		return err == nil
	})
	return pid
}

// alive reports whether a process runs. A zombie does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return fields[0] != "Z" && fields[0] != "X"
}

func (c *cli) holder(name string) string {
	c.Helper()
	l, err := c.admin.Get(c.Context(), name, metav1.GetOptions{})
	if err != nil {
		c.Fatal(err)
	}
	if l.Spec.HolderIdentity == nil {
		return ""
	}
	return *l.Spec.HolderIdentity
}

// say is a script that writes the process ID of its shell to a file, in one step.
func say(file string) string {
	return "echo $$ >" + file + ".new && mv " + file + ".new " + file + "; "
}

// The command has its term in its environment and can read standard input. The lease is free afterwards.
func TestRun(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	input := strings.Repeat("0123456789abcde\n", 1<<16)
	cmd := c.command("run", "job", "--identity", "me", "--", "sh", "-c",
		`echo $LEASEHOLD_LEASE $LEASEHOLD_NAMESPACE $LEASEHOLD_IDENTITY $LEASEHOLD_FENCING_TOKEN; cat`)
	cmd.Stdin = strings.NewReader(input)
	a := c.startCmd(cmd)
	a.wantCode(0)
	env, rest, _ := strings.Cut(a.stdout.String(), "\n")
	fields := strings.Fields(env)
	if len(fields) != 4 || strings.Join(fields[:3], " ") != "job "+c.ns+" me" {
		t.Errorf("environment %q", env)
	} else if token, err := strconv.ParseUint(fields[3], 10, 64); err != nil || token == 0 {
		t.Errorf("fencing token %q", fields[3])
	}
	if rest != input {
		t.Errorf("%d bytes of standard input came through, want %d", len(rest), len(input))
	}
	if h := c.holder("job"); h != "" {
		t.Errorf("afterwards held by %q", h)
	}
}

// handover stops the command of the leader and waits for the named standby to run its own. A leader that is not a
// program with this library goes on, and the request is withdrawn.
func TestAskedHandover(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	start := func(identity string, flags ...string) *call {
		args := append([]string{"run", "job", "--identity", identity, "--restart"}, flags...)
		return c.start(append(args, "--", "sh", "-c",
			"echo $LEASEHOLD_IDENTITY >>led; trap 'sleep 0.2; echo stopped >>led; exit 3' TERM; sleep 100 & wait")...)
	}
	start("a")
	c.await("a leads", func() bool { return c.file("led") == "a" })
	start("b")
	start("best", "--priority", "7")
	standby := "leasehold-go.github.io/standby"
	annotations := func() map[string]string {
		l, err := c.admin.Get(c.Context(), "job", metav1.GetOptions{})
		if err != nil {
			c.Fatal(err)
		}
		return l.Annotations
	}
	c.await("the best stands by", func() bool { return strings.HasSuffix(annotations()[standby], " 7 best") })
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, `handed over from "a" to "best" in`},
		{[]string{"--to", "b"}, `handed over from "best" to "b" in`},
	} {
		h := c.start(append([]string{"handover", "job"}, tt.args...)...)
		h.wantCode(0)
		if got := h.stdout.String(); !strings.Contains(got, tt.want) {
			t.Errorf("printed %q, want %s", got, tt.want)
		}
	}
	c.await("b runs", func() bool { return c.file("led") == "a\nstopped\nbest\nstopped\nb" })
	again := c.start("handover", "job", "--to", "b")
	again.wantCode(1)
	if got := again.stderr.String(); !strings.Contains(got, `is held by "b" already`) {
		t.Errorf("printed %q", got)
	}
	wide := c.start("get", "job", "-o", "wide")
	wide.wantCode(0)

	now := metav1.NowMicro()
	if _, err := c.admin.Create(c.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "other"},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: new("x"), AcquireTime: &now, RenewTime: &now,
			LeaseDurationSeconds: new(int32(60))}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	deaf := c.start("handover", "other", "--timeout", "1s")
	deaf.wantCode(1)
	if got := deaf.stderr.String(); !strings.Contains(got, "not handed over within 1s: its holder goes on") {
		t.Errorf("printed %q", got)
	}
	if l, err := c.admin.Get(c.Context(), "other", metav1.GetOptions{}); err != nil || len(l.Annotations) != 0 {
		t.Errorf("the request was not withdrawn: %v, %v", l.Annotations, err)
	}
}

// Of three commands for two slots, two run, with different numbers; the third has that of the first to end.
func TestRunSlots(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	held := func(name string) func() bool {
		return func() bool {
			l, err := c.admin.Get(c.Context(), name, metav1.GetOptions{})
			return err == nil && l.Spec.HolderIdentity != nil
		}
	}
	start := func(hold string) *call {
		return c.start("run", "job", "--slots", "2", "--", "sh", "-c", "echo $LEASEHOLD_LEASE $LEASEHOLD_SLOT; "+hold)
	}
	a := start("sleep 3")
	c.await("slot 0 held", held("job-0"))
	b := start("sleep 6")
	c.await("slot 1 held", held("job-1"))
	d := start("exit 7")
	for _, tt := range []struct {
		call *call
		code int
		want string
	}{{a, 0, "job-0 0\n"}, {d, 7, "job-0 0\n"}, {b, 0, "job-1 1\n"}} {
		tt.call.wantCode(tt.code)
		if got := tt.call.stdout.String(); got != tt.want {
			t.Errorf("printed %q, want %q", got, tt.want)
		}
	}
	if c.holder("job-0") != "" || c.holder("job-1") != "" {
		t.Errorf("afterwards held by %q and %q", c.holder("job-0"), c.holder("job-1"))
	}
}

func TestRunExitCodes(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	var group errgroup.Group
	group.SetLimit(4)
	codes := []int{0, 1, 2, 64, 75, 123, 124, 125, 126, 127, 128, 129, 130, 137, 143, 254, 255}
	if *long {
		codes = make([]int, 256)
		for code := range codes {
			codes[code] = code
		}
	}
	for _, code := range codes {
		group.Go(func() error {
			// Each has a lease of its own, so that none waits.
			cmd := c.command("run", fmt.Sprintf("exit-%d", code), "-n", c.ns, "--log-level=error", "--", "sh", "-c",
				fmt.Sprintf("exit %d", code))
			out, _ := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != code || len(out) > 0 {
				t.Errorf("exit code %d, want %d; it said %q", got, code, out)
			}
			return nil
		})
	}
	group.Wait()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGUSR1} {
		c.start("run", "job", "--", "sh", "-c", fmt.Sprintf("kill -%d $$", sig)).wantCode(128 + int(sig))
	}
	c.start("run", "job", "--", "nothing-of-that-name").wantCode(127)
	c.start("run", "job", "--", "./missing/script").wantCode(127)
	if err := os.WriteFile(filepath.Join(c.dir, "data"), []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.start("run", "job", "--", "./data").wantCode(126)
	if err := os.WriteFile(filepath.Join(c.dir, "bad"), []byte("#!/nothing/here\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.start("run", "job", "--", "./bad").wantCode(127)
	if h := c.holder("job"); h != "" {
		t.Errorf("afterwards held by %q", h)
	}
	c.start("run", "job").wantCode(125)
	c.start("run", "job", "--stop-timeout=3s", "--", "true").wantCode(125)
	c.start("run", "job", "--create=new", "--", "true").wantCode(125)
	c.start("run", "other", "--create=never", "--", "true").wantCode(125)
}

func TestRunWait(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	holder := c.start("run", "job", "--identity=first", "--", "sh", "-c", say("started")+"exec sleep 600")
	c.pid("started")
	for _, flag := range []string{"--no-wait", "--wait=300ms"} {
		a := c.start("run", "job", flag, "--", "touch", "ran")
		a.wantCode(124)
		if flag == "--no-wait" && !strings.Contains(a.stderr.String(), `held by "first"`) {
			t.Errorf("%s: %s", flag, a.stderr.String())
		}
	}
	waiting := c.start("run", "job", "--", "touch", "ran")
	waiting.heeds()
	waiting.signal(syscall.SIGTERM)
	waiting.wantCode(143)
	if _, err := os.Stat(filepath.Join(c.dir, "ran")); err == nil {
		t.Error("a command was run without the lease")
	}
	next := c.start("run", "job", "--wait=1m", "--", "touch", "ran")
	holder.signal(syscall.SIGTERM)
	holder.wantCode(143)
	next.wantCode(0)
	if _, err := os.Stat(filepath.Join(c.dir, "ran")); err != nil {
		t.Error("the command was not run: ", err)
	}
}

// heeds waits until run handles signals: it does when it starts its watchdog.
func (a *call) heeds() {
	a.Helper()
	pid := a.cmd.Process.Pid
	a.await("started its watchdog", func() bool {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			a.Fatal(err)
		}
		return len(bytes.TrimSpace(children)) > 0
	})
}

// A request to stop is passed on, and the lease renewed until the command has ended, however long that takes.
func TestRunStop(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	a := c.start("run", "job", "--duration=4s", "--identity=one", "--", "sh", "-c",
		`trap 'echo usr1 >got; ' USR1; trap 'sleep 6; echo stopped >stopped; exit 9' TERM; `+
			say("started")+`while :; do sleep 0.1; done`)
	c.pid("started")
	a.signal(syscall.SIGUSR1)
	c.await("USR1 passed on", func() bool { return c.file("got") == "usr1" })
	other := c.start("run", "job", "--duration=4s", "--", "sh", "-c", "cat stopped")
	a.signal(syscall.SIGTERM)
	a.wantCode(9)
	other.wantCode(0)
	if got := other.stdout.String(); got != "stopped\n" {
		t.Errorf("when another had the lease, the command had not stopped: %q", got)
	}
}

// SIGINT is passed on as SIGINT.
func TestRunInterrupt(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	a := c.start("run", "job", "--", "sh", "-c", `trap 'exit 5' INT; `+say("started")+`while :; do sleep 0.1; done`)
	c.pid("started")
	a.signal(os.Interrupt)
	a.wantCode(5)
}

const stubborn = `trap '' TERM INT; `

func TestRunStubborn(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		args    []string
		signals int
	}{
		{"killed after the grace period", []string{"--grace-period=500ms"}, 1},
		{"killed by a second signal", []string{"--grace-period=10m"}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCLI(t)
			args := append([]string{"run", "job"}, tt.args...)
			a := c.start(append(args, "--", "sh", "-c", stubborn+say("started")+"while :; do sleep 0.1; done")...)
			pid := c.pid("started")
			for range tt.signals {
				a.signal(syscall.SIGTERM)
				// While a signal is pending, another of its kind is lost.
				c.await("asked to stop", func() bool {
					return strings.Contains(a.stderr.String(),
						"stopping the command")
				})
			}
			a.wantCode(137)
			if alive(pid) {
				t.Error("it is still there")
			}
			if h := c.holder("job"); h != "" {
				t.Errorf("afterwards held by %q", h)
			}
		})
	}
}

// The lease is released only after the last process ended, be it in the process group or a daemon that left it.
func TestRunGrandchildren(t *testing.T) {
	t.Parallel()
	quoted := func(name string) string {
		return `sh -c '` + strings.ReplaceAll(stubborn+say(name), "'", `'\''`) +
			`while :; do sleep 0.1; done' & while ! [ -e ` + name + ` ]; do sleep 0.05; done; `
	}
	for name, script := range map[string]string{
		"child":  quoted("child"),
		"daemon": "setsid " + quoted("daemon"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCLI(t)
			a := c.start("run", "job", "--grace-period=2s", "--", "sh", "-c", script+"exit 4")
			pid := c.pid(name)
			for c.holder("job") != "" {
				time.Sleep(5 * time.Millisecond)
			}
			if alive(pid) {
				t.Error("it goes on without the lease")
			}
			a.wantCode(4)
		})
	}
}

// When the tool is killed, so are the processes of the command.
func TestRunKilled(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	a := c.start("run", "job", "--", "sh", "-c", stubborn+`sh -c '`+strings.ReplaceAll(stubborn+say("child"), "'",
		`'\''`)+`while :; do sleep 0.1; done' & `+
		say("started")+"while :; do sleep 0.1; done")
	pids := []int{c.pid("started"), c.pid("child")}
	a.signal(syscall.SIGKILL)
	c.await("gone with the tool", func() bool { return !alive(pids[0]) && !alive(pids[1]) })
	a.wantCode(-1)
}

func TestRunSuspended(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	a := c.start("run", "job", "--duration=6s", "--", "sh", "-c", stubborn+say("started")+"while :; do sleep 0.1; done")
	pid := c.pid("started")
	a.signal(syscall.SIGSTOP)
	c.run("two", func(s leasehold.Session) {
		if alive(pid) {
			t.Error("the command runs while another has the lease")
		}
		<-s.Done()
	}, c.asAdmin(), leasehold.WithLease("job"), leasehold.WithDuration(6*time.Second))
	c.awaitLeader("two")
	a.signal(syscall.SIGCONT)
	a.wantCode(123)
}

// Cut off from the API server, the command receives SIGTERM, and SIGKILL before another holds the lease.
func TestRunLost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, traps string
		told        bool
	}{
		{"stops", `trap 'echo told >told; exit 0' TERM; `, true},
		{"ignores SIGTERM", stubborn, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCLI(t)
			network := newProxy(t, c.server)
			a := c.start("run", "job", "--duration=10s", "--renew-deadline=4s", "--stop-timeout=5500ms",
				"--server=https://"+network.Addr, "--tls-server-name=127.0.0.1", "--", "sh", "-c",
				tt.traps+say("started")+"while :; do sleep 0.1; done")
			pid := c.pid("started")
			c.run("two", func(s leasehold.Session) {
				if alive(pid) {
					t.Error("the command runs while another has the lease")
				}
				<-s.Done()
			}, c.asAdmin(), leasehold.WithLease("job"), leasehold.WithDuration(10*time.Second))
			network.Set(proxy.Rule{Drop: true}, proxy.Rule{Drop: true})
			c.awaitLeader("two")
			a.wantCode(123)
			if told := c.file("told") != ""; told != tt.told {
				t.Errorf("told to stop: %v", told)
			}
		})
	}
}

func TestRunTaken(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	a := c.start("run", "job", "--duration=60s", "--", "sh", "-c",
		stubborn+say("started")+"while :; do sleep 0.1; done")
	pid := c.pid("started")
	patch := `{"spec":{"holderIdentity":"thief"}}`
	if _, err := c.admin.Patch(t.Context(), "job", types.MergePatchType, []byte(patch),
		metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	a.wantCode(123)
	if alive(pid) {
		t.Error("it is still there")
	}
	if said := a.stderr.String(); !strings.Contains(said,
		`error: the command was stopped: lease lost: now held by "thief"`) {
		t.Errorf("it said %s", said)
	}
	if h := c.holder("job"); h != "thief" {
		t.Errorf("afterwards held by %q", h)
	}
}

// With --restart a command that ends is started again, after a pause; after a loss it is when the lease is acquired
// again.
func TestRunRestart(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	a := c.start("run", "job", "--restart", "--", "sh", "-c", "echo $LEASEHOLD_FENCING_TOKEN >>starts; exit 3")
	began := time.Now()
	starts := func() []string { return strings.Fields(c.file("starts")) }
	// During a pause no command runs that could determine the exit code.
	c.await("the third pause", func() bool { return strings.Count(a.stderr.String(), "restarted after a pause") >= 3 })
	n, most := len(starts()), 1+int(time.Since(began)/(800*time.Millisecond))
	if n > most {
		t.Errorf("%d starts in %v", n, time.Since(began))
	}
	a.signal(syscall.SIGTERM)
	a.wantCode(143)
	var last uint64
	for _, s := range starts() {
		token, err := strconv.ParseUint(s, 10, 64)
		if err != nil || token <= last {
			t.Errorf("tokens %v", starts())
		}
		last = token
	}

	a = c.start("run", "other", "--restart", "--", "sh", "-c", say("started")+"exec sleep 600")
	pid := c.pid("started")
	if err := c.admin.Delete(t.Context(), "other", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.await("started again", func() bool { return c.pid("started") != pid })
	if alive(pid) {
		t.Error("the first command runs beside the second")
	}
	a.signal(syscall.SIGTERM)
	a.wantCode(143)
}

// A command that does not change its beat file any more is stopped in time, although the API server answers, and
// another process has the lease when it expires. SIGTERM comes first.
func TestRunBeat(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	path := filepath.Join(c.dir, "beat")
	if err := os.WriteFile(path, nil, 0o600); err != nil { // of an earlier run
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	// For longer than --beat the file is touched, with its time going backwards; then the work is stuck.
	const script = `trap 'echo TERM >>signals' TERM
for i in $(seq 59 -1 35); do touch -d "2026-01-01 00:00:$i" "$LEASEHOLD_BEAT_FILE"; sleep 0.3; done
date +%s%N >stuck
while :; do sleep 0.1; done`
	a := c.start("run", "job", "--duration=4s", "--identity=a", "--beat-file="+path, "--beat=5s",
		"--stop-timeout=300ms", "--listen="+address, "--", "bash", "-c", say("started")+script)
	pid := c.pid("started")
	c.run("two", func(s leasehold.Session) {
		if alive(pid) {
			t.Error("the command runs while another has the lease")
		}
		<-s.Done()
	}, c.asAdmin(), leasehold.WithLease("job"), leasehold.WithDuration(4*time.Second))
	c.await("stuck", func() bool { return c.file("stuck") != "" })
	stuck, err := strconv.ParseInt(c.file("stuck"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	c.await("gone", func() bool { return !alive(pid) })
	if took := time.Since(time.Unix(0, stuck)); took < time.Second {
		t.Errorf("stopped %v after its last beat", took)
	} else {
		t.Logf("stopped %v after its work was stuck", took)
	}
	a.wantCode(123)
	if got := a.stderr.String(); strings.Count(got, "lease lost: the command did not change --beat-file for 5s") < 3 ||
		strings.Contains(got, "Beat for") {
		t.Errorf("it says %s", got)
	}
	if got := c.file("signals"); got != "TERM" {
		t.Errorf("before SIGKILL it received %q", got)
	}
	c.awaitLeader("two")

	// One that shows that its work goes on, however slow, is left alone.
	c.start("run", "other", "--beat-file="+path, "--beat=5s", "--", "sh", "-c",
		`for i in $(seq 20); do echo $i >"$LEASEHOLD_BEAT_FILE.new"; mv "$LEASEHOLD_BEAT_FILE.new" `+
			`"$LEASEHOLD_BEAT_FILE"; sleep 0.4; done; exit 7`).wantCode(7)

	// With --restart the tool campaigns again, and counts the loss.
	os.Remove(path)
	b := c.start("run", "again", "--restart", "--beat-file="+path, "--beat=1s", "--listen="+address, "--", "sh", "-c",
		"echo >>starts; sleep 600")
	c.await("started again", func() bool {
		starts, _ := os.ReadFile(filepath.Join(c.dir, "starts"))
		return bytes.Count(starts, []byte("\n")) > 1
	})
	counted := regexp.MustCompile(`leasehold_losses_total\{name="again",[^}]*,reason="stalled"\} [1-9]`)
	if got := get(t, "http://"+address+"/metrics"); !counted.MatchString(got) {
		t.Errorf("metrics: %s", got)
	}
	b.signal(syscall.SIGTERM)
	b.wantCode(143)
}

// As the first process of a container the tool collects orphans.
func TestRunFirstProcess(t *testing.T) {
	c := newCLI(t)
	unshare := []string{"unshare", "--fork", "--pid", "--mount-proc"}
	if out, err := exec.Command(unshare[0], append(unshare[1:], "true")...).CombinedOutput(); err != nil {
		t.Skipf("needs the right to make a PID namespace: %v %s", err, out)
	}
	a := c.startCmd(c.wrapped(unshare, "run", "job", "--", "sh", "-c",
		`echo $PPID; for i in 1 2 3; do (setsid sleep 0.1 & sleep 0.1 &); done; sleep 1; for i in $(seq 100); do `+
			`dead=$(grep -l '^State:.Z' /proc/[0-9]*/status | wc -l); [ $dead = 0 ] && break; sleep 0.1; done; `+
			`echo $dead`))
	a.wantCode(0)
	if got := strings.Fields(a.stdout.String()); strings.Join(got, " ") != "1 0" {
		t.Errorf("parent and number of dead processes: %v, want 1 and 0", got)
	}
}

// newProxy starts a proxy to the API server.
func newProxy(t *testing.T, server *controlplane.Server) *proxy.Proxy {
	target, err := url.Parse(server.Config().Host)
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(target.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// An operator's session with all commands.
func TestOperator(t *testing.T) {
	c := newCLI(t)
	do := func(code int, stdout, stderr string, args ...string) {
		c.Helper()
		a := c.start(args...)
		a.wantCode(code)
		for _, got := range []struct{ name, text, want string }{{"output", a.stdout.String(), stdout},
			{"errors", a.stderr.String(), stderr}} {
			if want := strings.ReplaceAll(got.want, "NS", c.ns); !strings.Contains(got.text, want) || want == "" &&
				got.text != "" {
				c.Errorf("%v: %s %q, want %q", args, got.name, got.text, want)
			}
		}
	}
	do(0, "", "No leases found in namespace NS.", "get")
	do(0, "lease.coordination.k8s.io/job created\n", "", "create", "job", "--labels", "team=storage")
	do(1, "", "error: lease NS/job exists already", "create", "job")
	do(1, "", "is invalid", "create", "Job")
	do(0, "job    free     <none>", "", "get", "-l", "team=storage")
	do(0, "", "No leases found", "get", "-l", "team=web")
	do(1, "", "error: no lease NS/other\n", "get", "other")

	watch := c.start("watch", "job", "other", "-o", "json")
	seen := func(status, holder string) {
		c.Helper()
		c.await("seen to be "+status+" "+holder, func() bool {
			for line := range strings.Lines(watch.stdout.String()) {
				if strings.Contains(line, `"name":"job","status":"`+status+`"`) &&
					(holder == "" || strings.Contains(line, `"holder":"`+holder+`"`)) {
					return true
				}
			}
			return false
		})
	}
	seen("free", "")
	report := c.start("report", "job", "--html", "page.html", "--record", "record.jsonl")
	c.await("recorded", func() bool { return c.file("record.jsonl") != "" })
	claim := c.start("claim", "job", "--identity", "operator")
	seen("held", "operator")
	do(0, "job    held     operator", "", "get", "job")
	do(124, "", `error: leasehold: lease held by "operator"`, "claim", "job", "--no-wait")
	do(124, "", "error: the lease was not acquired within 100ms", "claim", "job", "--wait=100ms")
	do(1, "", `error: NS/job not released: "operator" holds it, not "me"`, "release", "job", "-i", "me")
	do(1, "", `error: NS/job not released: "operator" holds it, not "me"`, "release", "job", "--force", "--holder=me")
	claim.signal(os.Interrupt)
	claim.wantCode(0)
	if got := claim.stdout.String(); !strings.Contains(got, "holding "+c.ns+"/job as \"operator\"") ||
		!strings.HasSuffix(got, "released "+c.ns+"/job\n") {
		t.Errorf("claim: %q", got)
	}
	do(0, "NS/job is free already\n", "", "release", "job", "-i", "operator")
	do(1, "", "error: no lease NS/other", "release", "other", "-i", "operator")

	claim = c.start("claim", "job", "--identity", "operator2")
	seen("held", "operator2")
	c.await("told", func() bool { return claim.stdout.String() != "" }) // before that it would acquire the lease again
	do(0, "released NS/job\n", `Took NS/job away from "operator2", who had acquired it`, "release", "job", "--force",
		"--holder=operator2")
	claim.wantCode(123)
	claim = c.start("claim", "job", "--identity", "operator3", "--listen=127.0.0.1:0")
	seen("held", "operator3")
	c.await("told", func() bool { return claim.stdout.String() != "" })
	if err := c.admin.Delete(t.Context(), "job", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	seen("missing", "")
	claim.wantCode(123)
	watch.signal(os.Interrupt)
	watch.wantCode(0)
	report.signal(syscall.SIGTERM)
	report.wantCode(0)
	if page := c.file("page.html"); !strings.Contains(page, "3 terms") || !strings.Contains(page, "operator3") {
		t.Errorf("page:\n%s", page)
	}
	do(0, "page2.html written\n", "", "report", "--from", "record.jsonl", "--html", "page2.html")
	if c.file("page.html") != c.file("page2.html") {
		t.Error("the page of the recording is another than that of the watch")
	}
	do(1, "", `is forbidden: User "nobody" cannot list resource "leases"`, "get", "--as=nobody")
	do(1, "", `a Role in namespace "NS" needs the rule {apiGroups: ["coordination.k8s.io"], resources: ["leases"], `+
		`resourceNames: ["job"], verbs: ["get"]}`, "watch", "job", "--as=nobody")
}

// With the right to get leases but not to watch them, watch polls.
func TestWatchPolls(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	grant(c.fleet, "getter", "get")
	a := c.start("watch", "job", "--as=getter")
	c.await("told", func() bool { return strings.Contains(a.stderr.String(), "read every two seconds") })
	c.start("run", "job", "--identity=me", "--", "sleep", "600")
	c.await("seen", func() bool { return strings.Contains(a.stdout.String(), " me\n") })
}

// A credential plugin is also a child: the tool must leave it to client-go, which waits for it.
func TestRunCredentialPlugin(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	cfg := c.server.Config()
	credential, err := json.Marshal(map[string]any{
		"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
		"status": map[string]any{
			"expirationTimestamp":   "2000-01-01T00:00:00Z", // so that it is called for each request
			"clientCertificateData": string(cfg.CertData), "clientKeyData": string(cfg.KeyData),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	plugin := filepath.Join(c.dir, "plugin")
	script := fmt.Sprintf("#!/bin/sh\necho called >>%s.calls\nsleep 0.05\ncat <<'END'\n%s\nEND\n", plugin, credential)
	if err := os.WriteFile(plugin, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters["c"] = &clientcmdapi.Cluster{Server: cfg.Host, CertificateAuthorityData: cfg.CAData}
	kubeconfig.AuthInfos["u"] = &clientcmdapi.AuthInfo{Exec: &clientcmdapi.ExecConfig{
		APIVersion: "client.authentication.k8s.io/v1", Command: plugin,
		InteractiveMode: clientcmdapi.NeverExecInteractiveMode,
	}}
	kubeconfig.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	kubeconfig.CurrentContext = "x"
	path := filepath.Join(c.dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*kubeconfig, path); err != nil {
		t.Fatal(err)
	}
	a := c.start("run", "job", "--kubeconfig="+path, "--", "sh", "-c",
		`for i in $(seq 40); do (setsid sleep 0.02 & sleep 0.02 &); sleep 0.1; done`)
	a.wantCode(0)
	if calls := strings.Count(c.file("plugin.calls"), "called"); calls < 2 {
		t.Errorf("the plugin was called %d times", calls)
	}
	if said := a.stderr.String(); strings.Contains(said, "no child processes") || strings.Contains(said, "level=WARN") {
		t.Errorf("it said %s", said)
	}
}
