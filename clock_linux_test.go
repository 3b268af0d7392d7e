package leasehold

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leasehold-go/leasehold/leasetest"
)

// In a time namespace the kernel shows a process clocks that are ahead of the machine's. The boot part of
// an instant follows CLOCK_BOOTTIME there, and a session in such a process ends as if its machine had
// slept for the difference.
func TestBootTimeOfTheKernel_G3(t *testing.T) {
	t.Parallel()
	if slept, ok := os.LookupEnv(sleptBefore); ok {
		d, err := time.ParseDuration(slept)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%s%d\n", sleptBefore, systemClock{}.now().boot)
		sleepThrough(t, d)
		return
	}
	for _, tt := range []struct {
		name       string
		mono, boot time.Duration // how far ahead the clocks are
		want       string        // how the session ends
	}{
		{"the machine slept", 0, 24 * time.Hour, "the machine slept"},
		{"it was awake", 24 * time.Hour, 24 * time.Hour, "released"},
		{"it was awake, and the boot clock does not count", 24 * time.Hour, 0, "released"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := bootTime()
			out := inTimeNamespace(t, tt.mono, tt.boot, fmt.Sprint(sleptBefore, "=", bootTime()-monotonicTime(t)))
			after := bootTime()
			_, reading, _ := strings.Cut(out, sleptBefore)
			reading, _, _ = strings.Cut(reading, "\n")
			boot, err := strconv.ParseInt(reading, 10, 64)
			if ahead := time.Duration(boot) - tt.boot; err != nil || ahead < before || ahead > after {
				t.Errorf("the boot clock %v ahead reads %v (%v), want between %v and %v", tt.boot, time.Duration(boot),
					err, before+tt.boot, after+tt.boot)
			}
			if want := "session ended: " + tt.want; !strings.Contains(out, want) {
				t.Errorf("want %q:\n%s", want, out)
			}
		})
	}
}

// sleptBefore tells the test's child for how long the machine has slept since it booted.
const sleptBefore = "LEASEHOLD_TEST_SLEPT"

// inTimeNamespace runs this test in a process whose clocks are ahead, and returns what it printed.
func inTimeNamespace(t *testing.T, mono, boot time.Duration, env string) string {
	t.Helper()
	unshare := []string{"unshare", "--time", fmt.Sprintf("--monotonic=%.0f", mono.Seconds()),
		fmt.Sprintf("--boottime=%.0f", boot.Seconds())}
	if os.Geteuid() != 0 {
		unshare = append(unshare, "--user", "--map-root-user")
	}
	if out, err := exec.Command(unshare[0], append(unshare[1:], "true")...).CombinedOutput(); err != nil {
		t.Skipf("no time namespace can be made here: %v: %v %s", unshare, err, out)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(unshare[0], append(unshare[1:], exe, "-test.run=^TestBootTimeOfTheKernel_G3$", "-test.v")...)
	cmd.Env = append(os.Environ(), env, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// sleepThrough holds a lease with a clock by which the machine has slept for as long as it had before, and
// then with the machine's own.
func sleepThrough(t *testing.T, slept time.Duration) {
	srv := leasetest.NewServer()
	clock := &wakingClock{t: t, slept: slept}
	for s := range Sessions(t.Context(), WithLease(name), WithNamespace(ns), WithClient(srv.Client("a")), unlogged,
		WithDuration(time.Hour), withClock(clock)) { // an hour, for a machine that is busy
		if s.Err() != nil || s.ValidFor() <= 0 {
			t.Errorf("it begins with %v, valid for %v", s.Err(), s.ValidFor())
		}
		written := srv.ResourceVersion()
		clock.awake.Store(true)
		err, ctxErr, valid := s.Err(), s.Context().Err(), s.ValidFor()
		if err == nil {
			if ctxErr != nil || valid <= 0 {
				t.Errorf("it goes on, but %v, valid for %v", ctxErr, valid)
			}
			defer fmt.Println("session ended: released")
			break
		}
		<-s.Done() // at once
		if ctxErr != context.Canceled || valid != 0 || !errors.Is(err, ErrLost) || context.Cause(s.Context()) != err {
			t.Errorf("ended with %v, but %v, valid for %v", err, ctxErr, valid)
		}
		defer func() {
			if now := srv.ResourceVersion(); now != written {
				t.Errorf("written after the loss: version %s, want %s", now, written)
			}
			if strings.Contains(err.Error(), "the machine slept") {
				fmt.Println("session ended: the machine slept")
			}
		}()
		break
	}
}

// A wakingClock is the machine's from when it is awake, and before that one by which it never slept again.
type wakingClock struct {
	systemClock
	t     *testing.T
	slept time.Duration
	awake atomic.Bool
}

func (c *wakingClock) now() instant {
	if c.awake.Load() {
		return c.systemClock.now()
	}
	return instant{time.Now(), monotonicTime(c.t) + c.slept}
}

func monotonicTime(t *testing.T) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
