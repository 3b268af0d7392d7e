package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasetest"
)

func TestExplain(t *testing.T) {
	for name, args := range map[string][]string{
		"explain.table":      {"explain"},
		"explain-60s.table":  {"explain", "--duration", "60s", "--replicas", "10"},
		"explain.json":       {"explain", "-o", "json"},
		"explain-30-20.yaml": {"explain", "--duration=30s", "--renew-deadline=20s", "-o", "yaml"},
	} {
		code, out, stderr := call(t, args...)
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		golden(t, name, out)
		if name == "explain.table" {
			doc, err := os.ReadFile("../../docs/operations.md")
			if err != nil || !strings.Contains(string(doc), "$ leasehold explain\n"+out) {
				t.Errorf("docs/operations.md shows something else (%v)", err)
			}
		}
	}
}

// What explain says of outages holds, whenever they begin: a leader survives one as long as it says, and none as long
// as the renew deadline.
func TestExplainedOutage(t *testing.T) {
	for _, times := range []timing{
		{duration: 15 * time.Second},
		{duration: time.Second},
		{duration: 60 * time.Second},
		{duration: 30 * time.Second, renewDeadline: 20 * time.Second, renewInterval: 2 * time.Second},
		{duration: 300 * time.Second},
	} {
		times.complete()
		e := explain(times, 2)
		for phase := range 40 {
			begin := 2*times.duration + times.renewInterval*time.Duration(phase)/20
			t.Run(fmt.Sprintf("%v after %v", times.duration, begin), func(t *testing.T) {
				survives := time.Duration(e.OutageSurvivedSeconds * float64(time.Second))
				if err := outage(t, times, begin, survives); err != nil {
					t.Errorf("an outage of %v: %v", survives, err)
				}
				if err := outage(t, times, begin, times.renewDeadline); err == nil {
					t.Errorf("an outage of %v was survived", times.renewDeadline)
				}
			})
		}
	}
}

// outage returns how a session ends that meets an outage, in which requests hang.
func outage(t *testing.T, times timing, begin, lasts time.Duration) (err error) {
	synctest.Test(t, func(t *testing.T) {
		client := leasetest.NewServer().Client("leader")
		opts := append(times.options(), leasehold.WithLease("any"), leasehold.WithNamespace("default"),
			leasehold.WithClient(client),
			leasehold.WithLogger(slog.New(slog.DiscardHandler)))
		s, fault := leasehold.Acquire(context.Background(), opts...)
		if fault != nil {
			t.Fatal(fault)
		}
		defer s.Release()
		time.Sleep(begin)
		client.Partition(true)
		time.Sleep(lasts)
		client.Partition(false)
		time.Sleep(times.duration)
		err = s.Err()
	})
	return err
}
