"use strict";
// Draws each <canvas> of a mesh, coloured by its error; the JSON beside it holds the arrays. All
// share one WebGL context, since browsers allow only few.
(() => {
  const figures = [...document.querySelectorAll("canvas")].map((canvas) => ({
    canvas, mesh: JSON.parse(canvas.nextElementSibling.textContent), yaw: -0.5, pitch: 0.15,
  }));
  if (!figures.length) return;
  const shared = document.createElement("canvas");
  const gl = shared.getContext("webgl", { antialias: true, alpha: true, preserveDrawingBuffer: true });
  if (!gl) {
    for (const { canvas } of figures) canvas.replaceWith("This browser does not draw meshes (no WebGL).");
    return;
  }
  const COLOURS = [[222, 229, 234], [247, 214, 130], [232, 128, 62], [160, 24, 42]], UNKNOWN = [150, 156, 162];
  const LIMIT = 1.45;  // of the pitch

  const program = gl.createProgram();
  const compile = (kind, source) => {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  };
  compile(gl.VERTEX_SHADER, `
    attribute vec3 position, normal, colour;
    uniform mat3 rotation;
    varying vec3 shaded;
    void main() {
      vec3 p = rotation * position, n = rotation * normal;
      float light = length(n) > 0.5 ? 0.4 + 0.6 * abs(dot(n, normalize(vec3(-0.3, 0.4, 0.9)))) : 1.0;
      shaded = colour * light;
      gl_Position = vec4(0.95 * p.xy, -0.5 * p.z, 1.0);
      gl_PointSize = 2.5;
    }`);
  compile(gl.FRAGMENT_SHADER, `
    precision mediump float;
    varying vec3 shaded;
    void main() { gl_FragColor = vec4(shaded, 1.0); }`);
  gl.linkProgram(program);
  gl.useProgram(program);
  gl.enable(gl.DEPTH_TEST);
  const places = ["position", "normal", "colour"].map((name) => gl.getAttribLocation(program, name));
  places.forEach((place) => gl.enableVertexAttribArray(place));

  const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)).buffer;

  function colourOf(level) {
    if (level === 255) return UNKNOWN;
    const at = (level / 254) * (COLOURS.length - 1), k = Math.min(Math.floor(at), COLOURS.length - 2);
    return COLOURS[k].map((low, c) => low + (COLOURS[k + 1][c] - low) * (at - k));
  }

  function normalsOf(p, triangles) {
    const normals = new Float32Array(p.length);
    for (let t = 0; t < triangles.length; t += 3) {
      const [a, b, c] = [3 * triangles[t], 3 * triangles[t + 1], 3 * triangles[t + 2]];
      const u = [0, 1, 2].map((k) => p[b + k] - p[a + k]), v = [0, 1, 2].map((k) => p[c + k] - p[a + k]);
      const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
      for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) normals[corner + k] += n[k];
    }
    for (let i = 0; i < p.length; i += 3) {
      const size = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
      for (let k = 0; k < 3; k++) normals[i + k] /= size;
    }
    return normals;
  }

  function upload(kind, array) {
    const buffer = gl.createBuffer();
    gl.bindBuffer(kind, buffer);
    gl.bufferData(kind, array, gl.STATIC_DRAW);
    return buffer;
  }

  for (const figure of figures) {
    const positions = Float32Array.from(new Int16Array(bytes(figure.mesh.positions)), (x) => x / 32767);
    const triangles = new Uint16Array(bytes(figure.mesh.triangles));
    const colours = Float32Array.from([...new Uint8Array(bytes(figure.mesh.error))].flatMap(colourOf), (x) => x / 255);
    figure.corners = triangles.length;
    figure.points = positions.length / 3;
    figure.buffers = [positions, normalsOf(positions, triangles), colours].map((x) => upload(gl.ARRAY_BUFFER, x));
    figure.index = upload(gl.ELEMENT_ARRAY_BUFFER, triangles);
    delete figure.mesh;
  }

  function draw(figure) {
    const { canvas } = figure;
    const side = Math.max(1, Math.round(canvas.clientWidth * Math.min(window.devicePixelRatio || 1, 2)));
    for (const c of [canvas, shared]) if (c.width !== side || c.height !== side) c.width = c.height = side;
    gl.viewport(0, 0, side, side);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const [cy, sy, cp, sp] = [Math.cos(figure.yaw), Math.sin(figure.yaw), Math.cos(figure.pitch), Math.sin(figure.pitch)];
    gl.uniformMatrix3fv(gl.getUniformLocation(program, "rotation"), false,  // columns
      [cy, sp * sy, -cp * sy, 0, cp, sp, sy, -sp * cy, cp * cy]);
    figure.buffers.forEach((buffer, k) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.vertexAttribPointer(places[k], 3, gl.FLOAT, false, 0, 0);
    });
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, figure.index);
    if (figure.corners) gl.drawElements(gl.TRIANGLES, figure.corners, gl.UNSIGNED_SHORT, 0);
    else gl.drawArrays(gl.POINTS, 0, figure.points);
    const flat = canvas.getContext("2d");
    flat.clearRect(0, 0, side, side);
    flat.drawImage(shared, 0, 0);
  }

  function turn(figure, yaw, pitch) {
    figure.yaw += yaw;
    figure.pitch = Math.max(-LIMIT, Math.min(LIMIT, figure.pitch + pitch));
    draw(figure);
  }

  for (const figure of figures) {
    const { canvas } = figure;
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) turn(figure, event.movementX * 0.01, event.movementY * 0.01);
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
      if (!step) return;
      event.preventDefault();
      turn(figure, ...step);
    });
    draw(figure);
  }
  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => figures.forEach(draw));
  });
})();
