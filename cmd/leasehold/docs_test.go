package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// The documents are checked here rather than in testbed, because go test caches what is read from another module.
const root = "../.."

// read returns the text of the files below the root whose names match, by name.
func read(t *testing.T, match func(path string) bool) map[string]string {
	t.Helper()
	texts := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == ".git" || entry.Name() == "testdata") {
			return filepath.SkipDir
		}
		name, _ := filepath.Rel(root, path)
		if entry.Type().IsRegular() && match(name) {
			text, err := os.ReadFile(path)
			texts[name] = string(text)
			return err
		}
		return nil
	})
	if err != nil || len(texts) == 0 {
		t.Fatalf("%d files: %v", len(texts), err)
	}
	return texts
}

func isDoc(path string) bool  { return strings.HasSuffix(path, ".md") }
func isTest(path string) bool { return strings.HasSuffix(path, "_test.go") }
func isCode(path string) bool {
	return strings.HasSuffix(path, ".go") && !isTest(path) && !strings.HasPrefix(path, "testbed")
}

// The Go code in the documents compiles, with the names around it that any program has.
func TestDocumentedCode(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: compiles controller-runtime")
	}
	imports := map[string]string{
		"atomic":         "sync/atomic",
		"cache":          "sigs.k8s.io/controller-runtime/pkg/cache",
		"config":         "sigs.k8s.io/controller-runtime/pkg/config",
		"context":        "context",
		"corev1":         "k8s.io/api/core/v1",
		"ctrl":           "sigs.k8s.io/controller-runtime",
		"errors":         "errors",
		"fmt":            "fmt",
		"http":           "net/http",
		"httputil":       "net/http/httputil",
		"klog":           "k8s.io/klog/v2",
		"kubernetes":     "k8s.io/client-go/kubernetes",
		"leaderelection": "k8s.io/client-go/tools/leaderelection",
		"leasectrl":      "github.com/leasehold-go/leasehold/leasectrl",
		"leasehold":      "github.com/leasehold-go/leasehold",
		"leasetest":      "github.com/leasehold-go/leasehold/leasetest",
		"log":            "log",
		"logr":           "github.com/go-logr/logr",
		"manager":        "sigs.k8s.io/controller-runtime/pkg/manager",
		"metav1":         "k8s.io/apimachinery/pkg/apis/meta/v1",
		"metricsserver":  "sigs.k8s.io/controller-runtime/pkg/metrics/server",
		"net":            "net",
		"os":             "os",
		"rand":           "crypto/rand",
		"reconcile":      "sigs.k8s.io/controller-runtime/pkg/reconcile",
		"record":         "k8s.io/client-go/tools/record",
		"resourcelock":   "k8s.io/client-go/tools/leaderelection/resourcelock",
		"rest":           "k8s.io/client-go/rest",
		"signal":         "os/signal",
		"slog":           "log/slog",
		"strconv":        "strconv",
		"strings":        "strings",
		"sync":           "sync",
		"syscall":        "syscall",
		"time":           "time",
		"types":          "k8s.io/apimachinery/pkg/types",
		"url":            "net/url",
	}
	const around = `
func snippet(
	ctx context.Context, restConfig, cfg *rest.Config, clientset *kubernetes.Clientset, recorder record.EventRecorder,
	hostname string, opts []leasehold.Option, reconcile func(context.Context), migrate func(context.Context) error,
	setUp func(ctrl.Manager, leasehold.Session) error, ended error, campaign func(leasehold.Option),
	importAs func(context.Context, int), ring *leasehold.Ring, reconciler reconcile.Reconciler,
	label func(context.Context, string) error, load func(context.Context) ([]string, error),
) error {
%s
	return nil
}
`
	testbed, err := filepath.Abs(filepath.Join(root, "testbed")) // what the code needs
	if err != nil {
		t.Fatal(err)
	}
	temp, replace := t.TempDir(), map[string]string{}
	block := regexp.MustCompile("(?s)```go\n(.*?)```")
	var packages []string
	texts := read(t, isDoc)
	for _, name := range slices.Sorted(maps.Keys(texts)) { // so that the go command knows them the next time
		for i, match := range block.FindAllStringSubmatch(texts[name], -1) {
			header, code := fmt.Sprintf("// %s, block %d\n\n", name, i+1), match[1]
			if !strings.HasPrefix(code, "package main\n") { // a whole program is compiled as it is
				header += "package documented\n\n"
				code = fmt.Sprintf(around, strings.ReplaceAll(code, "WithRESTConfig(config)",
					"WithRESTConfig(restConfig)"))
				for _, name := range slices.Sorted(maps.Keys(imports)) {
					if regexp.MustCompile(`\b` + name + `\.`).MatchString(code) {
						header += fmt.Sprintf("import %s %q\n", name, imports[name])
					}
				}
			}
			pkg := fmt.Sprintf("p%d", len(packages))
			packages = append(packages, "./documented/"+pkg)
			file := filepath.Join(temp, pkg+".go")
			if err := os.WriteFile(file, []byte(header+code), 0o644); err != nil {
				t.Fatal(err)
			}
			replace[filepath.Join(testbed, "documented", pkg, "snippet.go")] = file
		}
	}
	if len(packages) < 4 {
		t.Fatalf("%d blocks of code found", len(packages))
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(temp, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", append([]string{"build", "-overlay", file}, packages...)...)
	build.Dir = testbed
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// Tests, examples and files that the documents name exist.
func TestDocumentedNames(t *testing.T) {
	var tests strings.Builder
	for _, text := range read(t, isTest) {
		tests.WriteString(text)
	}
	defined := regexp.MustCompile(`\b(Test|Example|Fuzz|Benchmark)[A-Z]\w+`)
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for name, text := range read(t, isDoc) {
		for _, test := range defined.FindAllString(text, -1) {
			if !strings.Contains(tests.String(), "\nfunc "+test) {
				t.Errorf("%s: there is no %s", name, test)
			}
		}
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(name), match[1])); err != nil {
				t.Errorf("%s: link to %s: %v", name, match[1], err)
			}
		}
	}
}

// The alerts of docs/operations.md are those of the file of rules.
func TestDocumentedAlertsFile(t *testing.T) {
	file, err := os.ReadFile(filepath.Join(root, "deploy/prometheus/alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile(filepath.Join(root, "docs/operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, block := range strings.Split(string(docs), "```yaml\ngroups:\n")[1:] {
		alerts, _, _ := strings.Cut(block, "```")
		want.WriteString(alerts)
	}
	if _, got, _ := strings.Cut(string(file), "\ngroups:\n"); got != want.String() || got == "" {
		t.Errorf("the file has the groups\n%swant\n%s", got, want.String())
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(file, &rules); err != nil {
		t.Error(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || r.Expr == "" {
				t.Errorf("a rule without a name or an expression: %+v", r)
			}
		}
	}
}

// The commands of leasehold in documents, manifests and log messages have the flags that they are shown with.
func TestDocumentedCommands(t *testing.T) {
	call := regexp.MustCompile(`\bleasehold ([a-z]+)((?: +(?:-{1,2}[a-z][-a-z]*(?:[= ][^ -][^ ]*)?|[\w/.:$"-]+))*)`)
	flag := regexp.MustCompile(`(?:^|\s)(--?[a-z][-a-z]*)`)
	const command = `((?:kubectl |go run \./cmd/)?leasehold `
	inCode := regexp.MustCompile(`(?m)^(?:\$ |ln .*|)` + command + ".*)$|`" + command + "[^`]*)`")
	found := 0
	matches := func(path string) bool { return isDoc(path) || strings.HasPrefix(path, "deploy/") }
	for name, text := range read(t, matches) {
		for _, code := range inCode.FindAllStringSubmatch(text, -1) {
			line, _, _ := strings.Cut(code[1]+code[2], " -- ")
			match := call.FindStringSubmatch(line)
			if match == nil {
				continue
			}
			found++
			command := find(match[1])
			if command == nil {
				t.Errorf("%s: %q: there is no such command", name, line)
				continue
			}
			flags := (&tool{}).flagSet(command)
			for _, f := range flag.FindAllStringSubmatch(line, -1) {
				long, isLong := strings.CutPrefix(f[1], "--")
				if letter := strings.TrimPrefix(f[1], "-"); f[1] != "--help" && flags.Lookup(long) == nil &&
					(isLong || flags.ShorthandLookup(letter[:1]) == nil) {
					t.Errorf("%s: %q: %s has no flag %s", name, line, command.name, f[1])
				}
			}
		}
	}
	if found < 10 {
		t.Errorf("%d commands found", found)
	}
}

// What docs/errors.md explains is what the code says, but for the examples' names, values and durations; and it
// explains all warnings of the library and all faults of options.
func TestDocumentedErrors(t *testing.T) {
	var code strings.Builder
	for _, text := range read(t, isCode) {
		code.WriteString(text)
	}
	unquoted := strings.ReplaceAll(code.String(), `\"`, `"`)
	// said reports whether the code has these words, perhaps in two places, as those of a sentinel and its wrapper.
	said := func(words string) bool {
		if strings.Contains(unquoted, words) {
			return true
		}
		for i, r := range words {
			if r == ' ' && strings.Contains(unquoted, words[:i]) && strings.Contains(unquoted, words[i:]) {
				return true
			}
		}
		return false
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/errors.md"))
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile(`"[^"]*"|\{[^}]*\}|…|\d[\w.]*|default/x|: | v1 Pod |option \d of \d`)
	found := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		explained := strings.Join(cells[1:3], "|")
		for _, quoted := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(explained, -1) {
			for _, words := range examples.Split(quoted[1], -1) {
				words = strings.Trim(words, " ,;()=")
				if len(words) < 5 {
					continue
				}
				found++
				if !said(words) {
					t.Errorf("%q is explained, and not said by the code; it is of %q", words, quoted[1])
				}
			}
		}
	}
	if found < 40 {
		t.Errorf("%d texts found", found)
	}
	says := regexp.MustCompile(`\.(?:fault|warn|error)\(\s*"((?:[^"\\]|\\.)*)"`)
	verb := regexp.MustCompile(`%[a-z]`)
	for path, code := range read(t, func(path string) bool { return !strings.Contains(path, "/") && isCode(path) }) {
		for _, match := range says.FindAllStringSubmatch(code, -1) {
			words := verb.Split(strings.ReplaceAll(match[1], `\"`, `"`), -1)
			longest := slices.MaxFunc(words, func(a, b string) int { return len(a) - len(b) })
			explained := strings.HasSuffix(longest, " is nil") || strings.HasSuffix(longest, " is empty") ||
				strings.Contains(string(text), longest)
			if !explained {
				t.Errorf("%s says %q, which docs/errors.md does not explain", path, match[1])
			}
		}
	}
}

// The alerts are about metrics that there are.
func TestDocumentedAlerts(t *testing.T) {
	golden, err := os.ReadFile(filepath.Join(root, "leaseprom/testdata/metrics.txt"))
	if err != nil {
		t.Fatal(err)
	}
	collector, err := os.ReadFile(filepath.Join(root, "leaseprom/leaseprom.go")) // with those of groups
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range read(t, isDoc) {
		for _, metric := range regexp.MustCompile(`\bleasehold_[a-z_]+`).FindAllString(text, -1) {
			if !strings.Contains(string(golden), "# TYPE "+strings.TrimSuffix(metric, "_bucket")+" ") &&
				!strings.Contains(string(collector), `desc("`+strings.TrimPrefix(metric, "leasehold_")+`"`) {
				t.Errorf("%s: there is no metric %s", name, metric)
			}
		}
	}
}

// The types, functions and fields of the core that documents name, as `reflector.read`, exist; and each of its files
// has a place in the architecture.
func TestDocumentedCore(t *testing.T) {
	core := ""
	for _, text := range read(t, func(path string) bool { return !strings.Contains(path, "/") && isCode(path) }) {
		core += text
	}
	texts := read(t, func(path string) bool { return path == "docs/architecture.md" || path == "docs/safety.md" })
	found := 0
	for name, text := range texts {
		for _, match := range regexp.MustCompile("`([a-z]\\w*)\\.([a-zA-Z]\\w*)`").FindAllStringSubmatch(text, -1) {
			found++
			kind, member := match[1], match[2]
			method := regexp.MustCompile(`\nfunc \(\w+ \*?` + kind + `\) ` + member + `\(`)
			fields := regexp.MustCompile(`(?s)\n(?:type|var) ` + kind + ` struct \{\n.*?\n\}`).FindString(core)
			if !method.MatchString(core) && !regexp.MustCompile(`\n\t(?:\w+, )*`+member+`\b`).MatchString(fields) {
				t.Errorf("%s: the core has no %s.%s", name, kind, member)
			}
		}
	}
	if found < 40 {
		t.Errorf("%d names found", found)
	}
	for path := range read(t, isCode) {
		place, file := filepath.Split(path)
		if place == "" {
			place = file
		} else if !strings.HasPrefix(path, "internal/") {
			continue
		}
		if !strings.Contains(texts["docs/architecture.md"], strings.TrimSuffix(place, "/")) {
			t.Errorf("docs/architecture.md does not say what %s is for", place)
		}
	}
}
