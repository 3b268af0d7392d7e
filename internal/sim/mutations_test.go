package sim

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

var (
	runMutations = flag.Bool("mutations", false, "break the core in each of the ways in testdata, and want it found")
	groupSeeds   = flag.Int("mutations.groups", 100, "in how many of its worlds TestGroups has to find a mutation")
	mutantSeeds  = flag.Uint64("mutations.seeds", 5000, "in how many seeds the simulation has to find a mutation")
)

// The directories of the packages that are broken.
var (
	coreDir, _       = filepath.Abs("../..")
	shardsDir, _     = filepath.Abs("../shards")
	annotationDir, _ = filepath.Abs("../annotation")
)

// A list of mutations, and the tests that have to find them.
type list struct {
	file string
	dir  string // of the tests
	args func() []string
}

var lists = []*list{
	{"simulation.mutations", coreDir, func() []string {
		return []string{"-test.run=^TestSimulation$", "-test.timeout=20m", fmt.Sprint("-sim.seeds=", *mutantSeeds)}
	}},
	{"sharedwatch.mutations", coreDir, func() []string {
		return []string{"-test.run=^TestSharedWatch", "-test.failfast", "-test.timeout=5m"}
	}},
	{"groups.mutations", coreDir, func() []string {
		return []string{
			"-test.run=^TestGroup|^TestRing|^TestSpread", "-test.skip=^TestGroups$", "-test.failfast",
			"-test.timeout=5m",
		}
	}},
	{"shards.mutations", shardsDir, func() []string { return []string{"-test.failfast", "-test.timeout=5m"} }},
}

// A mutation replaces lines in functions of the core.
type mutation struct {
	*list
	name   string
	worlds bool // TestGroups has to find it, and no other test is run
	edits  []*edit
}

// finder returns the directory of the tests that have to find m, and their arguments.
func (m *mutation) finder() (dir string, args []string) {
	if m.worlds {
		return coreDir, []string{
			"-test.run=^TestGroups$", "-test.failfast", "-test.timeout=20m", fmt.Sprint("-group.seeds=", *groupSeeds),
		}
	}
	return m.dir, m.args()
}

// functions returns the functions that m breaks.
func (m *mutation) functions() (names []string) {
	for _, e := range m.edits {
		if !slices.Contains(names, e.function) {
			names = append(names, e.function)
		}
	}
	return names
}

// An edit replaces lines in one function.
type edit struct {
	function string // Type.method, or the function's name
	old, new []string
}

// TestMutationsApply shows that each mutation can be applied to the core as it is.
func TestMutationsApply(t *testing.T) {
	core := readCore(t)
	for _, list := range lists {
		for _, m := range readMutations(t, list) {
			if _, err := m.apply(core); err != nil {
				t.Errorf("testdata/%s: %q: %v", m.file, m.name, err)
			}
		}
	}
}

// TestMutationsFound breaks the core in many ways, one at a time, and wants each found. All broken functions are in one
// program, beside those that they replace; inForce says which of them are called. It takes minutes:
//
//	go test -v -run TestMutationsFound ./internal/sim -mutations
//	go test -v -run TestMutationsFound/groups ./internal/sim -mutations
func TestMutationsFound(t *testing.T) {
	if !*runMutations {
		t.Skip("without -mutations: runs the tests once for each mutation")
	}
	core := readCore(t)
	var all []*mutation
	faults := map[*mutation]error{} // that cannot be tried
	for _, list := range lists {
		for _, m := range readMutations(t, list) {
			if _, err := m.apply(core); err != nil {
				faults[m] = err
			}
			all = append(all, m)
		}
	}
	programs := build(t, core, all, faults)
	var mu sync.Mutex // protects found
	found := map[*mutation]string{}
	t.Cleanup(func() {
		table := "mutation | found by\n---|---"
		for _, m := range all {
			if how, ok := found[m]; ok {
				table += fmt.Sprintf("\n%s | %s", m.name, how)
			}
		}
		t.Log("what finds each, the seeds before it having found nothing:\n" + table)
	})
	for i, m := range all {
		t.Run(m.file+": "+m.name, func(t *testing.T) {
			t.Parallel()
			if err := faults[m]; err != nil {
				t.Fatal(err)
			}
			dir, args := m.finder()
			cmd := exec.Command(programs[dir], args...)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "GOMAXPROCS=1", fmt.Sprintf("%s=%d", inForce, i+1))
			out, err := cmd.CombinedOutput()
			if err == nil || strings.Contains(string(out), "panic: test timed out") {
				t.Fatalf("not found: %v", err)
			}
			how := verdict.FindStringSubmatch(string(out))
			if how == nil {
				t.Fatalf("the tests failed without a reason: %v\n%s", err, out[max(0, len(out)-4000):])
			}
			mu.Lock()
			defer mu.Unlock()
			found[m] = strings.Join(how[1:], "")
		})
	}
}

// verdict finds in the output of a test why it failed.
var verdict = regexp.MustCompile(`(seed \d+: )[^\n]*\n\s*VIOLATION: ([^\n]*)|--- FAIL: ` +
	`(TestSharedWatch\S+|Test(?:Assign|Owner|Plan|Contradicts)\S*)|` +
	`--- FAIL: (TestGroups/\d+|TestGroup[^s]\S*|TestRing\S*|TestSpread\S*)|panic: ([^\n]*)`)

// readMutations reads a list in testdata; simulation.mutations describes the format.
func readMutations(t *testing.T, from *list) (all []*mutation) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", from.file))
	if err != nil {
		t.Fatal(err)
	}
	var m *mutation
	var e *edit
	for i, line := range strings.Split(string(text), "\n") {
		name, begins := strings.CutPrefix(line, "== ")
		function, in := strings.CutPrefix(line, "in ")
		switch {
		case begins:
			m, e = &mutation{list: from, name: name}, nil
			all = append(all, m)
		case line == "" || strings.HasPrefix(line, "#"):
		case m == nil:
			t.Fatalf("testdata/%s:%d: want \"== NAME\" before %q", from.file, i+1, line)
		case line == "by TestGroups":
			m.worlds = true
		case in:
			e = &edit{function: function}
			m.edits = append(m.edits, e)
		case e == nil:
			t.Fatalf("testdata/%s:%d: want \"in FUNCTION\" before %q", from.file, i+1, line)
		case line[0] == '-':
			e.old = append(e.old, line[1:])
		case line[0] == '+':
			e.new = append(e.new, line[1:])
		case line[0] == ' ':
			e.old, e.new = append(e.old, line[1:]), append(e.new, line[1:])
		default:
			t.Fatalf("testdata/%s:%d: want a line that begins with \"-\", \"+\" or a blank, not %q", from.file, i+1,
				line)
		}
	}
	if len(all) == 0 {
		t.Fatalf("testdata/%s has no mutations", from.file)
	}
	return all
}

// readCore returns the files of the core, of the part of it that shares out the keys of groups, and of the one that
// reads annotations.
func readCore(t *testing.T) map[string]string {
	t.Helper()
	var names []string
	for _, dir := range []string{coreDir, shardsDir, annotationDir} {
		more, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, more...)
	}
	files := map[string]string{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		code, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(code)
	}
	return files
}

// parseFunction returns a function, and the file that has it.
func parseFunction(files map[string]string, name string) (string, *ast.FuncDecl, *token.FileSet, error) {
	for file, code := range files {
		positions := token.NewFileSet()
		parsed, err := parser.ParseFile(positions, file, code, 0)
		if err != nil {
			return "", nil, nil, err
		}
		for _, decl := range parsed.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && functionName(f) == name {
				return file, f, positions, nil
			}
		}
	}
	return "", nil, nil, fmt.Errorf("the core has no function %q", name)
}

func functionName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	receiver := f.Recv.List[0].Type
	if star, ok := receiver.(*ast.StarExpr); ok {
		receiver = star.X
	}
	if generic, ok := receiver.(*ast.IndexExpr); ok {
		receiver = generic.X
	}
	return fmt.Sprint(receiver, ".", f.Name.Name)
}

// apply returns the files that m changes, as they are then.
func (m *mutation) apply(core map[string]string) (map[string]string, error) {
	if len(m.edits) == 0 {
		return nil, errors.New("it changes nothing")
	}
	files, changed := maps.Clone(core), map[string]string{}
	for _, e := range m.edits {
		file, code, err := e.apply(files)
		if err != nil {
			return nil, err
		}
		files[file], changed[file] = code, code
	}
	return changed, nil
}

// apply returns the name of the file that e changes, and its text then.
func (e *edit) apply(files map[string]string) (file, code string, err error) {
	file, f, positions, err := parseFunction(files, e.function)
	if err != nil {
		return "", "", fmt.Errorf("%w: find where its lines are now\n%s", err, strings.Join(e.old, "\n"))
	}
	from, to := positions.Position(f.Pos()).Line-1, positions.Position(f.End()).Line
	if len(e.old) == 0 || slices.Equal(e.old, e.new) {
		return "", "", fmt.Errorf("it changes nothing in %s", e.function)
	}
	lines := strings.Split(files[file], "\n")
	at, times := 0, 0
	for i := from; i+len(e.old) <= to; i++ {
		if slices.EqualFunc(lines[i:i+len(e.old)], e.old, sameButIndentation) {
			at = i
			times++
		}
	}
	if times != 1 {
		return "", "", fmt.Errorf("%s in %s has these lines %d times, want once:\n%s",
			e.function, filepath.Base(file), times, strings.Join(e.old, "\n"))
	}
	return file, strings.Join(slices.Concat(lines[:at], e.new, lines[at+len(e.old):]), "\n"), nil
}

func sameButIndentation(a, b string) bool { return strings.TrimSpace(a) == strings.TrimSpace(b) }

// inForce is the environment variable that says which mutation is in force: its number, from 1 on.
const inForce = "LEASEHOLD_MUTATION"

// build builds the tests of each directory with all mutations but those with faults. One that does not compile gets a
// fault.
func build(t *testing.T, core map[string]string, all []*mutation, faults map[*mutation]error) map[string]string {
	t.Helper()
	temp := t.TempDir()
	programs := map[string]string{}
	for again := true; again; {
		again = false
		overlay := writeOverlay(t, temp, withSwitches(t, core, all, faults))
		for _, dir := range []string{shardsDir, coreDir} {
			programs[dir] = filepath.Join(temp, filepath.Base(dir)+".test")
			cmd := exec.Command("go", "test", "-c", "-vet=off", "-ldflags=-w", "-overlay", overlay, "-o", programs[dir],
				".")
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			if err == nil {
				continue
			}
			wrong := lineOfMutation.FindAllStringSubmatch(string(out), -1)
			if len(wrong) == 0 {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, line := range wrong {
				i, _ := strconv.Atoi(line[1])
				faults[all[i-1]] = fmt.Errorf("it does not compile: %s", line[0])
			}
			again = true
			break
		}
	}
	return programs
}

// lineOfMutation finds in the output of the compiler what is wrong with a mutation.
var lineOfMutation = regexp.MustCompile(`mutation-(\d+)\.go:.*`)

// writeOverlay writes files, named by what they replace, and the description of that for the go command.
func writeOverlay(t *testing.T, temp string, files map[string]string) string {
	t.Helper()
	replace := map[string]string{}
	write := func(name, text string) string {
		path := filepath.Join(temp, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for file, code := range files {
		replace[file] = write(fmt.Sprint(len(replace), ".go"), code)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	return write("overlay.json", string(overlay))
}

// withSwitches returns the files that change: each function that mutations break has a broken copy for each of them,
// and calls the copy of the mutation in force.
func withSwitches(
	t *testing.T, core map[string]string, all []*mutation, faults map[*mutation]error,
) map[string]string {
	t.Helper()
	type copies struct {
		cases, code string
	}
	functions := map[string]*copies{}
	for i, m := range all {
		if faults[m] != nil {
			continue
		}
		broken, err := m.apply(core)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range m.functions() {
			file, f, positions, err := parseFunction(broken, name)
			if err != nil {
				t.Fatal(err)
			}
			c := functions[name]
			if c == nil {
				c = &copies{}
				functions[name] = c
			}
			code := broken[file]
			at := func(p token.Pos) int { return positions.Position(p).Offset }
			copied := fmt.Sprint(f.Name.Name, "Mutation", i+1)
			c.cases += fmt.Sprintf("case %d: %s; ", i+1, callOf(f, copied))
			c.code += fmt.Sprintf("\n\n//line mutation-%d.go:1\n%s%s%s", i+1,
				code[at(f.Pos()):at(f.Name.Pos())], copied, code[at(f.Name.End()):at(f.End())])
		}
	}
	files, changed := maps.Clone(core), map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(functions)) {
		file, f, positions, err := parseFunction(files, name)
		if err != nil {
			t.Fatal(err)
		}
		code := files[file]
		body := positions.Position(f.Body.Lbrace).Offset + 1
		code = code[:body] + " switch mutationInForce { " + functions[name].cases + "}; " + code[body:] +
			functions[name].code + "\n"
		files[file], changed[file] = code, code
	}
	for _, dir := range []string{coreDir, shardsDir, annotationDir} {
		changed[filepath.Join(dir, "mutationinforce.go")] = fmt.Sprintf(`package %s

import (
	"os"
	"strconv"
)

var mutationInForce, _ = strconv.Atoi(os.Getenv(%q))
`, map[string]string{coreDir: "leasehold", shardsDir: "shards", annotationDir: "annotation"}[dir], inForce)
	}
	return changed
}

// callOf returns the statement by which a function returns what another one does that has its parameters.
func callOf(f *ast.FuncDecl, name string) string {
	if f.Recv != nil {
		name = f.Recv.List[0].Names[0].Name + "." + name
	}
	var args []string
	for _, field := range f.Type.Params.List {
		for _, param := range field.Names {
			args = append(args, param.Name)
		}
	}
	call := fmt.Sprintf("%s(%s)", name, strings.Join(args, ", "))
	if f.Type.Results == nil {
		return call + "; return"
	}
	return "return " + call
}
