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
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/leasehold-go/leasehold"
)

// memberEnv makes this program a process that does a task, which the first line of its standard input describes. It
// ends with that input.
const memberEnv = "BENCH_MEMBER"

// What such a process does.
const (
	workBusy      = "busy"      // use up a core, and do nothing else
	workCrowd     = "crowd"     // campaign for many leases
	workLeasehold = "leasehold" // be a candidate
	workElector   = "client-go" // be a candidate
	workRawWrite  = "raw write" // renew what it holds, by raw requests
	workRawWatch  = "raw watch" // watch a lease, by raw requests
	workReplica   = "replica"   // be a candidate of a Deployment
)

// A task is what such a process is told.
type task struct {
	Work       string `json:"work"`
	Kubeconfig string `json:"kubeconfig"`
	Leases     string `json:"leases"` // the name of the lease; of many, the first part of their names
	Count      int    `json:"count"`  // of many
	Identity   string `json:"identity"`

	Duration time.Duration `json:"duration"`
	Deadline time.Duration `json:"deadline"` // of client-go
	Period   time.Duration `json:"period"`   // of client-go

	// Of a replica.
	Of          string `json:"of"` // workLeasehold or workElector
	Prioritized bool   `json:"prioritized"`
	Priority    int    `json:"priority"`
	Yields      bool   `json:"yields"`
}

// name returns the name of the i-th lease.
func (t task) name(i int) string {
	if t.Count == 0 {
		return t.Leases
	}
	return fmt.Sprintf("%s-%d", t.Leases, i)
}

// A census is what such a process says of itself when it is asked.
type census struct {
	Following  int       `json:"following"` // leases it watches, and knows the holder of; 0 of many while it leads any
	Leading    int       `json:"leading"`
	Lost       int       `json:"lost"`       // sessions
	LastBegun  time.Time `json:"lastBegun"`  // when a session began last
	Goroutines int       `json:"goroutines"` // without those before the first campaign, as the next three
	Heap       int64     `json:"heap"`       // bytes of objects after a garbage collection
	Stacks     int64     `json:"stacks"`
	Resident   int64     `json:"resident"` // bytes
	Sockets    int       `json:"sockets"`

	// Oldest is the greatest age that the last good renewal of any lease reached, since it was asked for last.
	Oldest time.Duration `json:"oldest"`

	// What a single candidate, or a raw one, has used since it began.
	CPU        time.Duration `json:"cpu"` // of a crowd too
	Renewals   int64         `json:"renewals"`
	Allocs     uint64        `json:"allocs"`
	AllocBytes uint64        `json:"allocBytes"`
	Switches   int64         `json:"switches"` // of context

	Failure string `json:"failure"` // why it does not do its task
}

// A worker does a task until the ctx that start is given ends.
type worker interface {
	start(context.Context, *rest.Config) error
	census(weigh bool) census
	wait() // until it has ended
}

// newWorker returns what does a task, nil for one that keeps a core busy.
func newWorker(t task) (worker, error) {
	switch t.Work {
	case workBusy:
		return nil, nil
	case workCrowd:
		return &member{task: t, live: map[leasehold.Session]struct{}{}, before: weigh()}, nil
	case workLeasehold, workElector:
		return &solo{task: t}, nil
	case workRawWrite, workRawWatch:
		return &rawMember{task: t}, nil
	}
	return nil, fmt.Errorf("no task %q", t.Work)
}

// runMember does what is asked for on in, a line each: "census" writes one to out, "weigh" one with what memory is in
// use, "stop" ends the campaigns and then the process. A replica is asked nothing.
func runMember(in io.Reader, out io.Writer) error {
	commands := bufio.NewScanner(in)
	if !commands.Scan() {
		return errors.New("no task")
	}
	var t task
	if err := json.Unmarshal(commands.Bytes(), &t); err != nil {
		return err
	}
	silence()
	if t.Work == workReplica {
		cfg, err := clientcmd.BuildConfigFromFlags("", t.Kubeconfig)
		if err != nil {
			return err
		}
		return runReplica(t, cfg, commands, out)
	}
	w, err := newWorker(t)
	if err != nil {
		return err
	}
	if w == nil {
		go spin()
		commands.Scan()
		return nil
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", t.Kubeconfig)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if err := w.start(ctx, cfg); err != nil {
		return err
	}
	for commands.Scan() && commands.Text() != "stop" {
		if err := json.NewEncoder(out).Encode(w.census(commands.Text() == "weigh")); err != nil {
			return err
		}
	}
	stop()
	w.wait()
	return commands.Err()
}

var spins atomic.Uint64 // of a process that is busy

func spin() {
	for n := uint64(0); ; n++ {
		spins.Store(n)
	}
}

// A member is a process that campaigns for many leases.
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

func (m *member) start(ctx context.Context, cfg *rest.Config) error {
	for i := range m.Count {
		m.loops.Go(func() {
			for s := range leasehold.Sessions(ctx, m.options(cfg, i)...) {
				m.lead(s)
			}
		})
	}
	m.loops.Go(func() { m.sample(ctx) })
	return nil
}

// options returns those of a lease. Made in the loop's own frame, they would stay on its stack while it leads: 8 kB
// instead of 4.
func (m *member) options(cfg *rest.Config, i int) []leasehold.Option {
	return []leasehold.Option{
		leasehold.WithRESTConfig(cfg), leasehold.WithNamespace(metav1.NamespaceDefault),
		leasehold.WithLease(m.name(i)), leasehold.WithDuration(m.Duration),
		leasehold.WithMonitor(&m.monitor), leasehold.WithLogger(slog.New(slog.DiscardHandler)),
	}
}

func (m *member) wait() { m.loops.Wait() }

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

// sample looks at the age of all leases' last renewals until ctx ends, seldom enough that it costs next to nothing.
func (m *member) sample(ctx context.Context) {
	pause := time.NewTicker(max(50*time.Millisecond, time.Duration(m.Count)*100*time.Microsecond))
	defer pause.Stop()
	for ctx.Err() == nil {
		m.mu.Lock()
		for s := range m.live {
			if valid := s.ValidFor(); valid > 0 { // of one that has ended, it is known that it was lost
				m.oldest = max(m.oldest, m.Duration*4/5-valid)
			}
		}
		m.mu.Unlock()
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
	}
}

func (m *member) census(weighed bool) (c census) {
	if weighed {
		c = weigh()
		c.Goroutines -= m.before.Goroutines
		c.Heap -= m.before.Heap
		c.Stacks -= m.before.Stacks
		c.Resident -= m.before.Resident
	}
	c.CPU, _ = ownCPUTime()
	m.mu.Lock()
	defer m.mu.Unlock()
	c.Leading, c.Lost, c.LastBegun = len(m.live), m.lost, m.begun
	c.Oldest, m.oldest = m.oldest, 0
	if c.Leading > 0 {
		return c // what the Monitor says of thousands of leases would count as their memory
	}
	for _, l := range m.monitor.Leases() {
		if strings.HasSuffix(l.Following, "watch") && l.Holder != nil { // its own or a shared one
			c.Following++
		}
	}
	return c
}

// weigh returns what this process has, the memory as it is after a garbage collection.
func weigh() census {
	resident, _ := residentBytes(os.Getpid())
	runtime.GC()
	samples := []metrics.Sample{
		{Name: "/sched/goroutines:goroutines"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/stacks:bytes"},
	}
	metrics.Read(samples)
	return census{
		Goroutines: int(samples[0].Value.Uint64()), Heap: int64(samples[1].Value.Uint64()),
		Stacks: int64(samples[2].Value.Uint64()), Resident: resident, Sockets: sockets(),
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
	count   int // leases

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
	p := &process{bench: b, cmd: cmd, in: in, out: out, answers: json.NewDecoder(out), count: t.Count}
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
	switch {
	case errors.Is(err, os.ErrClosed):
		err = fmt.Errorf("no answer: %w", errLate)
	case c.Failure != "":
		err = errors.New(c.Failure)
	}
	return c, err
}

// errLate is why an experiment was given up, which says something about the library or the machine.
var errLate = errors.New("given up after minutes")

// await returns the first census that will do.
func (p *process) await(what string, will func(census) bool) (census, error) {
	deadline := time.Now().Add(3*time.Minute + p.handover())
	for {
		c, err := p.ask("census")
		if err != nil || will(c) {
			return c, err
		}
		if time.Now().After(deadline) {
			return c, fmt.Errorf("not all %s, but %d led and %d followed, %d sessions lost: %w", what, c.Leading,
				c.Following, c.Lost, errLate)
		}
		if err := p.sleep(max(20*time.Millisecond, time.Duration(p.count)*10*time.Microsecond)); err != nil {
			return c, err
		}
	}
}

// handover returns how long it may take until all leases of the process are acquired, or released.
func (p *process) handover() time.Duration { return time.Duration(p.count) * 10 * time.Millisecond }

// end has the process give back what it holds, and waits until it has ended, or kills it. It may be called again, and
// of no process.
func (p *process) end() error {
	if p == nil || p.ended {
		return nil
	}
	p.ended = true
	p.in.Close()
	defer time.AfterFunc(tooLong+p.handover(), func() { p.cmd.Process.Kill() }).Stop()
	return p.cmd.Wait()
}
