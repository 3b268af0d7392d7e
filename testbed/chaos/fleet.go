package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/leasehold-go/leasehold/testbed/internal/child"
	"github.com/leasehold-go/leasehold/testbed/internal/proxy"
)

// The leases: one of leasehold's candidates alone, one for which client-go's electors compete too, one of electors
// alone. And a group.
const (
	alone  = "alone"
	mixed  = "mixed"
	theirs = "theirs"
	crew   = "crew"
)

// fleets are the candidates by the value of -fleet. Their settings are valid. Durations are short so that leadership
// changes often; where electors compete they are at least 5 s, and one second longer than the renew deadline.
var fleets = map[string][]spec{
	"all": {
		{Name: "amber", Lease: alone, Kind: loop, Duration: 3 * time.Second, Deadline: 2400 * time.Millisecond,
			Interval: 600 * time.Millisecond},
		{Name: "blue", Lease: alone, Kind: loop, Duration: 5 * time.Second, Deadline: 4500 * time.Millisecond,
			Interval: time.Second, KeepsIdentity: true},
		{Name: "coral", Lease: alone, Kind: acquire, Duration: 4 * time.Second, Deadline: 3200 * time.Millisecond,
			Interval: 800 * time.Millisecond},
		{Name: "dun", Lease: alone, Kind: do, Duration: 8 * time.Second, Deadline: 6 * time.Second,
			Interval: 1500 * time.Millisecond},
		{Name: "ebony", Lease: alone, Kind: loop, Duration: 6 * time.Second, Deadline: 3 * time.Second,
			Interval: 1500 * time.Millisecond},
		{Name: "fawn", Lease: mixed, Kind: loop, Duration: 5 * time.Second, Deadline: 4 * time.Second,
			Interval: time.Second},
		{Name: "gold", Lease: mixed, Kind: acquire, Duration: 6 * time.Second, Deadline: 4800 * time.Millisecond,
			Interval: 1200 * time.Millisecond},
		{Name: "elm", Lease: mixed, Kind: elector, Duration: 6 * time.Second, Deadline: 4 * time.Second,
			Interval: time.Second},
		{Name: "fir", Lease: mixed, Kind: elector, Duration: 6 * time.Second, Deadline: 4 * time.Second,
			Interval: time.Second},
		sharing("iris"), sharing("jade"), sharing("kelp"), sharing("lime"), sharing("mint"),
	},
	crew: {sharing("iris"), sharing("jade"), sharing("kelp"), sharing("lime"), sharing("mint")},
	"client-go": {
		{Name: "ash", Lease: theirs, Kind: elector, Duration: 5 * time.Second, Deadline: 4 * time.Second,
			Interval: time.Second},
		{Name: "oak", Lease: theirs, Kind: elector, Duration: 5 * time.Second, Deadline: 4 * time.Second,
			Interval: time.Second},
	},
}

// sharing returns a member of the group.
func sharing(name string) spec {
	return spec{Name: name, Lease: crew, Kind: sharer, Keys: 24, Duration: 5 * time.Second, Deadline: 4 * time.Second,
		Interval: time.Second}
}

// longest returns the longest duration in a fleet.
func longest(specs []spec) (d time.Duration) {
	for _, s := range specs {
		d = max(d, s.Duration)
	}
	return d
}

// leasesOf returns the leases of a fleet.
func leasesOf(specs []spec) []string {
	var leases []string
	for _, s := range specs {
		if len(leases) == 0 || leases[len(leases)-1] != s.Lease {
			leases = append(leases, s.Lease)
		}
	}
	return leases
}

// A member is a candidate as the harness sees it: the processes that run it one after the other, and their proxy.
type member struct {
	spec
	network *proxy.Proxy
	link    [2]proxy.Rule // rules of the network in this storm while it has no fault
	dir     string
	log     io.Writer
	runs    int

	onProcess, onNetwork sync.Mutex // held while it has a fault

	mu      sync.Mutex
	process *process
	stopped bool // by a fault, so that the supervisor must not continue it
}

// A process is one run of a candidate.
type process struct {
	cmd   *exec.Cmd
	stdin io.Writer
	asked bool          // to exit
	done  chan struct{} // closed when it has exited
}

// restoreLink removes a fault from the candidate's network.
func (m *member) restoreLink() { m.network.Set(m.link[0], m.link[1]) }

// start starts a candidate's next process.
func (m *member) start() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.runs++
	s := m.spec
	s.Journal = filepath.Join(m.dir, fmt.Sprintf("%s-%d.journal", m.Name, m.runs))
	arg, err := json.Marshal(s)
	if err != nil {
		return err
	}
	p := &process{cmd: exec.Command(program, candidateCommand, string(arg)), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	p.cmd.Stderr = m.log
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := child.Start(p.cmd, syscall.SIGKILL, func() {
		_ = p.cmd.Wait() // cmd.ProcessState says why
		close(p.done)
	}); err != nil {
		return fmt.Errorf("start candidate %s: %w", m.Name, err)
	}
	m.process, m.stopped = p, false
	return nil
}

// signal sends a signal to the candidate's process. It returns os.ErrProcessDone if that has exited.
func (m *member) signal(sig syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.process
	switch sig {
	case syscall.SIGSTOP:
		m.stopped = true
	case syscall.SIGCONT:
		m.stopped = false
	case syscall.SIGTERM, syscall.SIGKILL:
		p.asked = true
	}
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
		return p.cmd.Process.Signal(sig)
	}
}

// tell sends a command to the candidate.
func (m *member) tell(line string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := io.WriteString(m.process.stdin, line+"\n")
	return err
}

// wake continues the process unless a fault holds it stopped: a process that freezes itself may do so after its fault
// is over.
func (m *member) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.stopped {
		_ = m.process.cmd.Process.Signal(syscall.SIGCONT) // it may be gone
	}
}

// patience is how long a candidate may take to exit: longer than any of its requests takes on a busy machine.
const patience = 40 * time.Second

// end ends the process by a signal and returns once it has exited.
func (m *member) end(sig syscall.Signal) error {
	p := m.process
	if err := m.signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	for deadline := time.After(patience); ; {
		select {
		case <-p.done:
			return nil
		case <-time.After(time.Second):
			m.wake()
		case <-deadline:
			_ = m.signal(syscall.SIGKILL)
			<-p.done
			return fmt.Errorf("candidate %s still ran %v after %v", m.Name, patience, sig)
		}
	}
}

// failed returns an error if the process exited by itself.
func (m *member) failed() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.process
	select {
	case <-p.done:
	default:
		return nil
	}
	if !p.asked {
		return fmt.Errorf("candidate %s ended by itself: %v", m.Name, p.cmd.ProcessState)
	}
	return nil
}

// burnCommand is the argument of a process that keeps two CPUs busy. It is not the harness, so that all processes
// suffer alike.
const burnCommand = "burn"

func runBurner() int {
	for range 2 {
		go func() {
			for sum := [sha256.Size]byte{}; ; {
				sum = sha256.Sum256(sum[:])
			}
		}()
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// burn keeps two CPUs busy until ctx ends, for d at most.
func burn(ctx context.Context, d time.Duration) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	done := make(chan struct{})
	cmd := exec.Command(program, burnCommand)
	if err := child.Start(cmd, syscall.SIGKILL, func() {
		_ = cmd.Wait() // it is killed
		close(done)
	}); err != nil {
		return err
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	err = cmd.Process.Kill()
	<-done
	return err
}
