package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/rpc"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
	"github.com/leasehold-go/leasehold/testbed/internal/clientgo"
)

// candidateCommand is the first argument of a process that is a candidate; the second is its spec.
const candidateCommand = "candidate"

// A kind is the API by which a candidate campaigns.
type kind string

const (
	loop    kind = "Sessions"
	acquire kind = "Acquire"
	do      kind = "Do"
	elector kind = "client-go"
	sharer  kind = "Spread" // it works on keys of a group
)

// A spec is the settings of a candidate.
type spec struct {
	Name, Lease                  string
	Kind                         kind
	Duration, Deadline, Interval time.Duration // Interval is client-go's retry period
	KeepsIdentity                bool          // across restarts of its process
	Keys                         int           // of the group that a sharer is a member of
	Blind                        bool          // a sharer's work goes on for a while after it has lost its lease

	Namespace, Kubeconfig, Journal, Store string
}

// Times between two writes of a body: of a leader, and of the work of one key of many.
const (
	pace    = 15 * time.Millisecond
	keyPace = 120 * time.Millisecond
)

// Commands that the harness writes to a candidate's standard input, one a line.
const (
	freeze = "freeze" // stop this process between the next check of a session and the write that follows
	thaw   = "thaw"   // cancel a freeze that has not happened yet

	gatewayPage   = "gateway page"   // answer all requests with 404 and a page
	gatewayStatus = "gateway status" // answer all requests as if there were no such Lease
	gatewayOpen   = "gateway open"   // pass requests on to the API server
)

// A candidate is a process that campaigns for a lease and writes to the store while it leads.
type candidate struct {
	spec
	identity string
	journal  *journal
	store    *rpc.Client
	freeze   atomic.Bool
	gateway  gateway
	sessions atomic.Int64
	started  time.Duration

	mu    sync.Mutex               // protects since
	since map[string]time.Duration // by lease: the earliest start of the campaign for its next session
}

// runCandidate is the main function of a candidate's process.
func runCandidate(arg string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c := &candidate{started: boottime.Now(), since: map[string]time.Duration{}}
	err := json.Unmarshal([]byte(arg), &c.spec)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("candidate", c.Name, "pid", os.Getpid())
	slog.SetDefault(log)
	klog.SetSlogLogger(log)
	go c.obey()
	if err == nil {
		err = c.run(ctx)
	}
	if err != nil && ctx.Err() == nil {
		log.Error("candidate failed", "error", err)
		return 1
	}
	return 0
}

// obey executes the commands of the harness. The process exits at the end of standard input: the harness is gone.
func (c *candidate) obey() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch line := lines.Text(); line {
		case freeze, thaw:
			c.freeze.Store(line == freeze)
		case gatewayPage, gatewayStatus, gatewayOpen:
			c.gateway.mode.Store(line)
		}
	}
	os.Exit(1)
}

func (c *candidate) run(ctx context.Context) error {
	c.identity = c.Name
	if !c.KeepsIdentity {
		c.identity = fmt.Sprintf("%s-%d", c.Name, os.Getpid())
	}
	file, err := os.OpenFile(c.Journal, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	c.journal = &journal{file: file}
	if c.store, err = rpc.Dial("unix", c.Store); err != nil {
		return err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return err
	}
	cfg.Wrap(c.gateway.wrap)
	opts := []leasehold.Option{
		leasehold.WithRESTConfig(cfg), leasehold.WithNamespace(c.Namespace), leasehold.WithLease(c.Lease),
		leasehold.WithIdentity(c.identity), leasehold.WithDuration(c.Duration), leasehold.WithRenewDeadline(c.Deadline),
		leasehold.WithRenewInterval(c.Interval),
	}
	switch c.Kind {
	case loop:
		var err error
		for s := range leasehold.Sessions(ctx, append(opts, leasehold.WithError(&err))...) {
			c.lead(s)
		}
		return err
	case acquire:
		for {
			s, err := leasehold.Acquire(ctx, opts...)
			if err != nil {
				return err
			}
			c.lead(s)
			if err := s.Release(); err != nil && !errors.Is(err, leasehold.ErrLost) {
				slog.Info("not released", "error", err)
			}
			c.away()
		}
	case do:
		for {
			led := false
			_, err := leasehold.Do(ctx, func(ctx context.Context) (struct{}, error) {
				s, _ := leasehold.FromContext(ctx)
				c.lead(s)
				led = true
				return struct{}{}, nil
			}, opts...)
			if !led {
				return err
			}
			c.away()
		}
	case elector:
		client, err := coordinationv1client.NewForConfig(cfg)
		if err != nil {
			return err
		}
		clientgo.Candidate{
			Client: client, Namespace: c.Namespace, Lease: c.Lease, Identity: c.identity,
			Duration: c.Duration, Deadline: c.Deadline, Period: c.Interval, Away: c.Interval,
		}.Run(ctx, func(leading context.Context) {
			c.work(body{
				lease: c.Lease, done: leading.Done(), live: func() bool { return leading.Err() == nil },
				err: leading.Err, pace: pace, enough: time.Second + rand.N(2*c.Duration),
			})
		})
		return context.Cause(ctx)
	case sharer:
		return c.share(ctx, opts)
	}
	return fmt.Errorf("no candidates of the kind %q", c.Kind)
}

// away pauses between two campaigns so that others can acquire the lease.
func (c *candidate) away() { time.Sleep(c.Interval / 4) }

func (c *candidate) lead(s leasehold.Session) {
	c.work(body{
		lease: c.Lease, token: s.FencingToken(), done: s.Done(),
		live: func() bool { return s.Err() == nil && s.ValidFor() > 0 }, err: s.Err, pace: pace,
		enough: time.Second + rand.N(2*c.Duration),
	})
}

// A body is what the work of a session goes by.
type body struct {
	lease  string // or the key of a group, as keyOf has it
	token  uint64
	done   <-chan struct{}
	live   func() bool
	err    func() error
	pace   time.Duration
	enough time.Duration // how long one session of three lasts at most
	lag    time.Duration // for how long the work goes on, as long as it is live, once done is closed
}

// work is the body of a session: it writes to the store while the session is live, in one session of three for a
// limited time. Its last act before it returns is a write, unless the session is not live any more. It reports whether
// it returned because it had enough.
func (c *candidate) work(b body) (had bool) {
	session := fmt.Sprintf("%s.%d.%d", c.Name, os.Getpid(), c.sessions.Add(1))
	c.note(record{Session: session, What: begin, Of: &beginning{
		Lease: b.lease, Candidate: c.Name, Kind: c.Kind, Identity: c.identity, PID: os.Getpid(), Token: b.token,
		Deadline: c.Deadline, Since: c.campaigned(b.lease), Started: c.started,
	}})
	enough := make(<-chan time.Time) // never
	if rand.IntN(3) == 0 {
		enough = time.After(b.enough)
	}
	for last := false; ; {
		r := record{Session: session, What: look, Before: boottime.Now()}
		if !b.live() {
			break
		}
		r.After = boottime.Now()
		if c.freeze.CompareAndSwap(true, false) {
			// No lease protects against this: the process is frozen between the check and the write.
			_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		}
		r.Sent = boottime.Now()
		w := Write{Lease: b.lease, Session: session, Candidate: c.Name, Token: b.token, Looked: r.After}
		if err := c.store.Call("Store.Put", w, &r.Refused); err != nil {
			c.fail(err)
		}
		r.Done = boottime.Now()
		c.note(r)
		if last {
			break
		}
		select {
		case <-b.done:
			b.done, enough = nil, time.After(b.lag)
		case <-enough:
			last, had = true, b.done != nil
		case <-time.After(b.pace):
		}
	}
	r := record{Session: session, What: end, After: boottime.Now(), Why: "done"}
	if err := b.err(); err != nil {
		r.Why, r.Lost = err.Error(), errors.Is(err, leasehold.ErrLost)
	}
	c.note(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.since[b.lease] = boottime.Now()
	return had
}

// campaigned returns the earliest start of the campaign for the next session of a lease.
func (c *candidate) campaigned(lease string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.since[lease], c.started)
}

func (c *candidate) note(r record) {
	if err := c.journal.write(r); err != nil {
		c.fail(err)
	}
}

// fail ends the process, because its records would be incomplete.
func (c *candidate) fail(err error) {
	slog.Error("candidate failed", "error", err)
	os.Exit(1)
}
