package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
)

// The exit codes that are not a command's own; doc.go explains them.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitLost        = 123
	exitNotAcquired = 124
	exitRunFailed   = 125
	exitNotRunnable = 126
	exitNotFound    = 127
	exitSignal      = 128
)

func init() {
	// A process that run starts dies with the thread that started it (see start), so that must be the thread that
	// lasts as long as the process: main's.
	runtime.LockOSThread()
}

func main() {
	if watching() {
		watchdog()
		return
	}
	os.Exit((&tool{
		name: filepath.Base(os.Args[0]),
		in:   os.Stdin,
		out:  os.Stdout,
		err:  os.Stderr,
	}).main(os.Args[1:]))
}

// A tool is one call of leasehold: where it reads and writes, and what its common flags say.
type tool struct {
	name     string
	in       io.Reader
	out, err io.Writer

	cluster   cluster
	logLevel  slog.Level
	logFormat string
	log       *slog.Logger
}

// A command is one of leasehold's.
type command struct {
	name  string
	args  string // as usage shows them
	short string // one line
	long  string
	// examples are shown indented, with the name of the tool in place of "leasehold".
	examples string
	// offline commands need no API server, and have no flags to find one.
	offline bool
	flags   func(*pflag.FlagSet)
	// run is called with the arguments that are no flags; dash is how many of them were before "--", -1 without one.
	run func(t *tool, args []string, dash int) error
}

// commands returns the commands in the order in which help shows them, with their flags at the defaults.
func commands() []*command {
	return []*command{
		runCommand(), getCommand(), watchCommand(), claimCommand(), releaseCommand(), createCommand(), explainCommand(),
		reportCommand(), completionCommand(),
	}
}

// main runs the command that args name and returns the exit code.
func (t *tool) main(args []string) int {
	t.name = strings.Replace(strings.TrimSuffix(t.name, ".exe"), "kubectl-", "kubectl ", 1)
	err := t.dispatch(args)
	var exit *exitError
	code := 0
	if err != nil {
		code = exitFailed
	}
	if errors.As(err, &exit) {
		code, err = exit.code, exit.err
	}
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(t.err, "error:", err)
	}
	return code
}

func (t *tool) dispatch(args []string) error {
	args = t.commandFirst(args)
	if len(args) == 0 {
		t.usage(t.err)
		return exitWith(exitUsage, nil)
	}
	switch args[0] {
	case "-h", "--help", "help":
		if len(args) > 1 {
			if c := find(args[1]); c != nil {
				t.help(t.out, c, t.flagSet(c))
				return nil
			}
		}
		t.usage(t.out)
		return nil
	case "version", "--version":
		return t.version()
	}
	c := find(args[0])
	if c == nil {
		return exitWith(exitUsage, fmt.Errorf("no command %q: see %q", args[0], t.name+" help"))
	}
	flags := t.flagSet(c)
	err := flags.Parse(args[1:])
	if errors.Is(err, pflag.ErrHelp) {
		t.help(t.out, c, flags)
		return nil
	}
	if err == nil {
		err = t.openLog()
	}
	if err != nil {
		err = usageError{fmt.Errorf("%w: see %q", err, t.name+" "+c.name+" --help")}
	} else {
		err = c.run(t, flags.Args(), flags.ArgsLenAtDash())
	}
	return c.exit(err)
}

// commandFirst returns args with the common flags that come before the command, as in kubectl leasehold -n web get,
// behind it.
func (t *tool) commandFirst(args []string) []string {
	if len(args) == 0 || !strings.HasPrefix(args[0], "-") {
		return args
	}
	var discarded tool
	flags := discarded.commonFlags()
	flags.SetInterspersed(false)
	if err := flags.Parse(args); err != nil || flags.NArg() == 0 {
		return args
	}
	leading := args[:len(args)-flags.NArg()]
	return slices.Concat(flags.Args()[:1], leading, flags.Args()[1:])
}

// exit gives err the exit code of its kind, unless it has one.
func (c *command) exit(err error) error {
	var exit *exitError
	var usage usageError
	switch {
	case err == nil || errors.As(err, &exit):
		return err
	case c.name == "run":
		return exitWith(exitRunFailed, err)
	case errors.As(err, &usage):
		return exitWith(exitUsage, err)
	}
	return exitWith(exitFailed, err)
}

func find(name string) *command {
	for _, c := range commands() {
		if c.name == name {
			return c
		}
	}
	return nil
}

// flagSet returns the flags of c, which set what c and t remember.
func (t *tool) flagSet(c *command) *pflag.FlagSet {
	flags := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are shown once, by main
	flags.SortFlags = false
	if c.flags != nil {
		c.flags(flags)
	}
	if !c.offline {
		flags.AddFlagSet(t.commonFlags())
	}
	return flags
}

func (t *tool) commonFlags() *pflag.FlagSet {
	flags := pflag.NewFlagSet("common", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	t.cluster.flags(flags)
	flags.TextVar(&t.logLevel, "log-level", slog.LevelInfo, "lowest `level` to log: debug, info, warn or error")
	flags.StringVar(&t.logFormat, "log-format", "text", "`format` of the log, on standard error: text or json")
	return flags
}

func (t *tool) openLog() error {
	options := &slog.HandlerOptions{Level: t.logLevel}
	switch t.logFormat {
	case "text", "":
		t.log = slog.New(slog.NewTextHandler(t.err, options))
	case "json":
		t.log = slog.New(slog.NewJSONHandler(t.err, options))
	default:
		return fmt.Errorf("--log-format %q: want text or json", t.logFormat)
	}
	return nil
}

// interruptible returns a context that ends when the tool is asked to stop; its cause is a stopped. A second request ends
// the process.
func interruptible() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case sig := <-signals:
			signal.Stop(signals)
			cancel(stopped{sig})
		case <-ctx.Done():
			signal.Stop(signals)
		}
	}()
	return ctx, func() { cancel(nil) }
}

// An exitError ends the tool with a code of its own. Without an error it says nothing.
type exitError struct {
	code int
	err  error
}

func exitWith(code int, err error) error { return &exitError{code, err} }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d: %v", e.code, e.err) }
func (e *exitError) Unwrap() error { return e.err }

// A usageError is one that the reader of the help would not have made.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// oneLease returns the only argument.
func oneLease(args []string) (string, error) {
	switch len(args) {
	case 0:
		return "", usagef("which lease? want its name as the argument")
	case 1:
		return args[0], nil
	}
	return "", usagef("want one lease, not %d: %s", len(args), strings.Join(args, " "))
}
