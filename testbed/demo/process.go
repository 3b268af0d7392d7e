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
	"os/signal"
	"syscall"

	"github.com/cenkalti/backoff/v4"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/internal/child"
)

// A candidate or a member is this program, started again with this as its first argument and the journal as its second.
const (
	candidateCommand = "candidate"
	memberCommand    = "member"
)

// runProcess is the main function of such a process.
func runProcess(command, journalFile string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() { // standard input ends with the demo
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)).With(command, os.Getenv("POD_NAME"), "pid",
		os.Getpid()))
	file, err := os.OpenFile(journalFile, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		j := &journal{who: os.Getenv("POD_NAME"), file: file, out: os.Stdout}
		err = map[string]func(context.Context, *journal) error{
			candidateCommand: lead,
			memberCommand:    own,
		}[command](ctx, j)
	}
	if err != nil && ctx.Err() == nil {
		slog.Error("failed", "error", err)
		return 1
	}
	return 0
}

// lead writes the journal of the Lease while it leads.
func lead(ctx context.Context, j *journal) error {
	return campaign(ctx, func(s leasehold.Session) error { return j.writeJournal(s, "") })
}

// own writes the journals of the keys that it owns.
func own(ctx context.Context, j *journal) error {
	return share(ctx, func(s leasehold.Session, feed string) error {
		if err := j.writeJournal(s, feed); err != nil {
			return backoff.Permanent(err)
		}
		return nil
	})
}

// A process is one run of a candidate or member.
type process struct {
	cmd   *exec.Cmd
	asked syscall.Signal // the signal sent to end it, 0 before
	gone  bool           // its end was observed
}

// news is something that a process did: it wrote a record or, without one, it ended because of err.
type news struct {
	*process
	record *record
	err    error
}

// place holds what the processes of a scene share.
type place struct {
	command      string
	kubeconfig   string
	journal, log string // files
	news         chan news
}

// start starts a process, whose records go to the place's news; the last of them is its end.
func (p *place) start(name string) (*process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, p.command, p.journal)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+p.kubeconfig, "POD_NAME="+name)
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c := &process{cmd: cmd}
	if err := child.Start(cmd, syscall.SIGKILL, func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			r := new(record)
			if err := json.Unmarshal(lines.Bytes(), r); err == nil { // a killed process may leave half a line
				p.news <- news{process: c, record: r}
			}
		}
		p.news <- news{process: c, err: cmd.Wait()}
	}); err != nil {
		return nil, fmt.Errorf("start %s %s: %w", p.command, name, err)
	}
	return c, nil
}

// terminated reports whether SIGTERM itself ended a process, as it does just after the start: there is no handler yet,
// and no lease.
func terminated(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGTERM
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// signal sends sig, unless the process has just ended.
func (p *process) signal(sig syscall.Signal) error {
	if sig == syscall.SIGTERM || sig == syscall.SIGKILL {
		p.asked = sig
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", p.pid(), err)
	}
	return nil
}
