package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/leasehold-go/leasehold"
)

// memberEnv makes this program a process that campaigns for many leases, or that keeps a core busy, as the first line
// of its standard input says. It ends with that input.
const memberEnv = "BENCH_MEMBER"

var spins atomic.Uint64 // of one that is busy

// A task is what such a process does.
type task struct {
	Busy       bool          `json:"busy"` // use up a core, and do nothing else
	Kubeconfig string        `json:"kubeconfig"`
	Leases     string        `json:"leases"` // the first part of their names
	Count      int           `json:"count"`
	Duration   time.Duration `json:"duration"`
}

// A census is what such a process says of itself when it is asked.
type census struct {
	Following  int       `json:"following"` // leases it watches, and knows the holder of
	Leading    int       `json:"leading"`
	Lost       int       `json:"lost"`       // sessions
	LastBegun  time.Time `json:"lastBegun"`  // when a session began last
	Goroutines int       `json:"goroutines"` // what of this and the next two was there before the first campaign is not counted
	Heap       int64     `json:"heap"`       // bytes of objects after a garbage collection
	Stacks     int64     `json:"stacks"`
	Sockets    int       `json:"sockets"`

	// Oldest is the greatest age that the last good renewal of any lease reached, since it was asked for last.
	Oldest time.Duration `json:"oldest"`
	CPU    time.Duration `json:"cpu"`
}

// runMember does what is asked for on in, a line each: "census" writes one to out, "weigh" one with what memory is in
// use, "stop" ends the campaigns and then the process.
func runMember(in io.Reader, out io.Writer) error {
	commands := bufio.NewScanner(in)
	if !commands.Scan() {
		return errors.New("no task")
	}
	var t task
	if err := json.Unmarshal(commands.Bytes(), &t); err != nil {
		return err
	}
	if t.Busy {
		go func() {
			for n := uint64(0); ; n++ {
				spins.Store(n)
			}
		}()
		commands.Scan()
		return nil
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	m := &member{task: t, live: map[leasehold.Session]struct{}{}}
	m.before = m.weigh()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if err := m.start(ctx); err != nil {
		return err
	}
	go m.sample(ctx)
	for commands.Scan() && commands.Text() != "stop" {
		if err := json.NewEncoder(out).Encode(m.census(commands.Text() == "weigh")); err != nil {
			return err
		}
	}
	stop()
	m.loops.Wait()
	return commands.Err()
}

// A member is such a process at work.
type member struct {
	task
	before  census
	monitor leasehold.Monitor
	loops   sync.WaitGroup

	mu     sync.Mutex // protects what follows
	live   map[leasehold.Session]struct{}
	lost   int
	begun  time.Time
	oldest time.Duration
}

func (m *member) start(ctx context.Context) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", m.Kubeconfig)
	if err != nil {
		return err
	}
	for i := range m.Count {
		m.loops.Go(func() {
			for s := range leasehold.Sessions(ctx,
				leasehold.WithRESTConfig(cfg), leasehold.WithNamespace(metav1.NamespaceDefault),
				leasehold.WithLease(fmt.Sprintf("%s-%d", m.Leases, i)), leasehold.WithDuration(m.Duration),
				leasehold.WithMonitor(&m.monitor), leasehold.WithLogger(slog.New(slog.DiscardHandler)),
			) {
				m.lead(s)
			}
		})
	}
	return nil
}

func (m *member) lead(s leasehold.Session) {
	m.mu.Lock()
	m.begun = time.Now()
	m.live[s] = struct{}{}
	m.mu.Unlock()
	<-s.Done()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.live, s)
	if errors.Is(s.Err(), leasehold.ErrLost) {
		m.lost++
	}
}

// sample looks at the age of all leases' last renewals until ctx ends.
func (m *member) sample(ctx context.Context) {
	for ctx.Err() == nil {
		m.mu.Lock()
		for s := range m.live {
			if valid := s.ValidFor(); valid > 0 { // of one that has ended, it is known that it was lost
				m.oldest = max(m.oldest, m.Duration*4/5-valid)
			}
		}
		m.mu.Unlock()
		time.Sleep(50 * time.Millisecond)
	}
}

func (m *member) census(weigh bool) (c census) {
	if weigh {
		c = m.weigh()
		c.Goroutines -= m.before.Goroutines
		c.Heap -= m.before.Heap
		c.Stacks -= m.before.Stacks
	}
	for _, l := range m.monitor.Leases() {
		if strings.HasSuffix(l.Following, "watch") && l.Holder != nil { // its own or a shared one
			c.Following++
		}
	}
	c.CPU, _ = ownCPUTime()
	m.mu.Lock()
	defer m.mu.Unlock()
	c.Leading, c.Lost, c.LastBegun = len(m.live), m.lost, m.begun
	c.Oldest, m.oldest = m.oldest, 0
	return c
}

func (m *member) weigh() census {
	runtime.GC()
	samples := []metrics.Sample{
		{Name: "/sched/goroutines:goroutines"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"},
	}
	metrics.Read(samples)
	return census{
		Goroutines: int(samples[0].Value.Uint64()), Heap: int64(samples[1].Value.Uint64()),
		Stacks: int64(samples[2].Value.Uint64()), Sockets: sockets(),
	}
}

// sockets returns how many TCP connections this process has.
func sockets() (n int) {
	files, _ := filepath.Glob("/proc/self/fd/*")
	for _, file := range files {
		if to, err := os.Readlink(file); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// A process is another process of this program.
type process struct {
	*bench
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     io.ReadCloser
	answers *json.Decoder

	ended bool
}

// tooLong is how long a process may take to answer, or to end.
const tooLong = time.Minute

func (b *bench) newProcess(t task) (*process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, exe)
	cmd.Env = append(os.Environ(), memberEnv+"=1")
	cmd.Stderr = b.progress
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{bench: b, cmd: cmd, in: in, out: out, answers: json.NewDecoder(out)}
	line, err := json.Marshal(t)
	if err == nil {
		err = p.tell(string(line))
	}
	if err != nil {
		return nil, errors.Join(err, p.end())
	}
	return p, nil
}

func (p *process) tell(line string) error {
	_, err := io.WriteString(p.in, line+"\n")
	return err
}

// ask returns the answer to "census" or "weigh".
func (p *process) ask(question string) (c census, err error) {
	defer time.AfterFunc(tooLong, func() { p.out.Close() }).Stop()
	if err = p.tell(question); err == nil {
		err = p.answers.Decode(&c)
	}
	if errors.Is(err, os.ErrClosed) {
		err = fmt.Errorf("no answer: %w", errLate)
	}
	return c, err
}

// errLate is why an experiment was given up, which says something about the library or the machine.
var errLate = errors.New("given up after minutes")

// await returns the first census that will do.
func (p *process) await(what string, will func(census) bool) (census, error) {
	deadline := time.Now().Add(3 * time.Minute)
	for {
		c, err := p.ask("census")
		if err != nil || will(c) {
			return c, err
		}
		if time.Now().After(deadline) {
			return c, fmt.Errorf("not all %s, but %d led and %d followed, %d sessions lost: %w", what, c.Leading, c.Following, c.Lost, errLate)
		}
		if err := p.sleep(20 * time.Millisecond); err != nil {
			return c, err
		}
	}
}

// end has the process give back what it holds, and waits until it has ended, or kills it. It may be called again, and of
// no process.
func (p *process) end() error {
	if p == nil || p.ended {
		return nil
	}
	p.ended = true
	p.in.Close()
	defer time.AfterFunc(tooLong, func() { p.cmd.Process.Kill() }).Stop()
	return p.cmd.Wait()
}
