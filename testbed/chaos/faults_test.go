package main

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"reflect"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/testbed/internal/proxy"
)

func TestDraw(t *testing.T) {
	a, b := rand.New(rand.NewPCG(7, 0)), rand.New(rand.NewPCG(7, 0))
	seen := map[string]int{}
	for range 5000 {
		d, again := draw(a, 2), draw(b, 2)
		if d.inject == nil {
			t.Fatal("nothing was drawn")
		}
		d.inject, again.inject = nil, nil
		if !reflect.DeepEqual(d, again) {
			t.Fatalf("the same seed draws %v and %v", d, again)
		}
		seen[d.kind]++
		if l := d.length(10 * time.Second); l < 50*time.Millisecond || l > 17*time.Second {
			t.Fatalf("a fault of %v", l)
		}
		if d.pause < 100*time.Millisecond || d.pause > 5*time.Second {
			t.Fatalf("a pause of %v", d.pause)
		}
	}
	drawnLinks := map[string]int{}
	for range 500 {
		l, again := drawLinks(a, 3), drawLinks(b, 3)
		if !reflect.DeepEqual(l, again) {
			t.Fatalf("the same seed draws links %v and %v", l, again)
		}
		drawnLinks[l.kind]++
	}
	for _, kind := range []string{slow, jittery, asymmetric, ""} {
		if drawnLinks[kind] == 0 {
			t.Errorf("links were never %q", kind)
		}
	}
	for _, k := range kinds {
		if seen[k.name] == 0 {
			t.Errorf("%s was never drawn", k.name)
		}
	}
}

// A round trip takes the same share of the renew deadline, whichever way it is slow.
// A command to a process that has ended is no failure of the run.
func TestTellEnded(t *testing.T) {
	m := &member{process: &process{cmd: exec.Command("true")}}
	in, err := m.process.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.process.stdin = in
	if err := m.process.cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if err := m.tell(freeze); err == nil || ignoreEnded(err) != nil {
		t.Errorf("told a process that has ended: %v", err)
	}
}

func TestLinkRules(t *testing.T) {
	const share = 200 * time.Millisecond
	for _, tt := range []struct {
		kind string
		want [2]proxy.Rule
	}{
		{"", [2]proxy.Rule{}},
		{slow, [2]proxy.Rule{{Delay: share / 2}, {Delay: share / 2}}},
		{jittery, [2]proxy.Rule{{Jitter: share / 2}, {Jitter: share / 2}}},
		{asymmetric, [2]proxy.Rule{{}, {Delay: share}}},
	} {
		l := links{kind: tt.kind, share: []float64{0, 0.1}, oneWay: []int{0, 1}}
		if got := l.rules(1, 10*share); got != tt.want {
			t.Errorf("%q: %+v, want %+v", tt.kind, got, tt.want)
		}
	}
}

func TestGateway(t *testing.T) {
	var g gateway
	passed := 0
	transport := g.wrap(roundTripper(func(*http.Request) (*http.Response, error) {
		passed++
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	}))
	for i, tt := range []struct {
		mode     string
		code     int
		noStatus bool
	}{{"", 200, true}, {gatewayPage, 404, true}, {gatewayStatus, 404, false}, {gatewayOpen, 200, true}} {
		if tt.mode != "" {
			g.mode.Store(tt.mode)
		}
		resp, err := transport.RoundTrip(httptest.NewRequest(http.MethodGet, "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		var status metav1.Status
		err = json.NewDecoder(resp.Body).Decode(&status)
		if resp.StatusCode != tt.code || (err != nil) != tt.noStatus || !tt.noStatus &&
			status.Reason != metav1.StatusReasonNotFound {
			t.Errorf("%d, %q: %d with %+v, %v", i, tt.mode, resp.StatusCode, status, err)
		}
	}
	if passed != 2 {
		t.Errorf("%d requests were passed on, want 2", passed)
	}
}
